"""Runs all tests of this folder, in rounds of several files side by side: one after the other they take twice as long.

    python tests/gpu/run_all.py [round ...]

What measures times runs alone, and what needs one GPU leaves the others to the rest. Rounds are chosen by their
numbers, from 0. Prints each file's last line, and all that a failing one printed; ends with 1 if any failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
LIMIT_S = 540.0
"""Of a round; the longest takes half of it on two H100."""


@dataclass(frozen=True)
class Run:
    """One pytest.

    Args:
        files: of this folder, without ``test_`` and ``.py``.
        chosen: as for pytest's -k.
        gpu: the only one that it sees; all of them by default.
    """

    files: tuple[str, ...]
    chosen: str = ""
    gpu: int | None = None

    @property
    def name(self) -> str:
        return " ".join(self.files) + (f" -k '{self.chosen}'" if self.chosen else "")

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        paths = [str(FOLDER / f"test_{name}.py") for name in self.files]
        command = [sys.executable, "-m", "pytest", "-q", *paths, *(["-k", self.chosen] if self.chosen else [])]
        environment = dict(os.environ)
        if self.gpu is not None and torch.cuda.device_count() > self.gpu:
            seen = environment.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = seen.split(",")[self.gpu] if seen else str(self.gpu)
        with log.open("wb") as out:
            # A session of its own, so that it ends with all its ranks.
            return subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )


ROUNDS = (
    (
        Run(("attention",), gpu=0),
        Run(("rows", "step_faults"), gpu=1),
        Run(("transports",), chosen="not nccl"),
        Run(("transports",), chosen="nccl"),
        Run(("peer", "memcheck")),
    ),
    (Run(("timeline",)),),
    (Run(("context",)), Run(("digits",)), Run(("pack_put", "sums"))),
    (Run(("context_pull",)),),
)


def end(process: subprocess.Popen[bytes]) -> None:
    """With all its ranks; nothing where it has ended already."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_good(process: subprocess.Popen[bytes], *, limit_s: float) -> bool:
    """Whether a run ends well within its time; one that does not is ended."""
    try:
        # 5: nothing was chosen, or all of it skips.
        return process.wait(max(0.0, limit_s)) in (0, 5)
    except subprocess.TimeoutExpired:
        end(process)
        return False


def num_failed(runs: Sequence[Run], folder: Path) -> int:
    """Of a round, whose runs are side by side."""
    failed, began = 0, time.monotonic()
    logs = [folder / str(place) for place in range(len(runs))]
    started = [run.start(log) for run, log in zip(runs, logs, strict=True)]
    try:
        for run, process, log in zip(runs, started, logs, strict=True):
            passed = is_good(process, limit_s=LIMIT_S - (time.monotonic() - began))
            text = log.read_text(errors="replace")
            failed += not passed
            if not passed:
                print(text, flush=True)
            last, took = (text.splitlines() or [""])[-1], f"{time.monotonic() - began:.0f} s"
            print(f"{'' if passed else 'FAILED '}{run.name}, {took}: {last}", flush=True)
    finally:
        for process in started:
            end(process)
    return failed


def main() -> int:
    named = {f"test_{name}" for runs in ROUNDS for run in runs for name in run.files}
    missing = {path.stem for path in FOLDER.glob("test_*.py")} - named
    if missing:
        print(f"run_all.py does not run {', '.join(sorted(missing))}: add them to a round", file=sys.stderr)
        return 1
    chosen = [ROUNDS[int(number)] for number in sys.argv[1:]] or ROUNDS
    failed = 0
    for runs in chosen:
        with tempfile.TemporaryDirectory() as folder:
            failed += num_failed(runs, Path(folder))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
