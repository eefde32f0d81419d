"""``hetsched train``: a job from a plan file, its metrics as JSON lines, its progress on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.plan import Plan
from hetsched.runtime.device import backend_of, check_devices
from hetsched.runtime.report import StepReport
from hetsched.train.demands import check_sections, check_sizes
from hetsched.train.launch import launch
from hetsched.train.trainer import Evaluation, Trainer

OVERLAP = "overlap.json"
"""In the folder of metrics.jsonl."""
_LINES = 10
"""Of progress, about, where there is no terminal to write them over each other."""


class UnwritableError(JobError):
    """What the job is to leave cannot be written; said before any rank starts."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What rank 0 writes: metrics always, what the last step did if asked."""

    metrics: Path
    trace: Path | None = None
    overlap: Path | None = None


def train_plan(
    plan: Plan,
    *,
    stop_after: int | None = None,
    out: Path | None = None,
    trace: Path | None = None,
    with_overlap: bool = False,
    is_debug: bool = False,
) -> Path:
    """Train as the plan says, on as many processes as it has ranks.

    Args:
        plan: with model, data and training.
        stop_after: end after so many steps of the plan's; the learning rate's schedule stays the plan's.
        out: folder of metrics.jsonl; ``runs/<name>`` by default.
        trace: file for the measured timeline of the last step, as `hetsched show` reads it.
        with_overlap: leave overlap.json beside metrics.jsonl: what the last step hid of its messages.
        is_debug: as in Engine.

    Returns:
        The path of metrics.jsonl: a line per step, and one per evaluation; the last line is of the final evaluation.

    Raises:
        PlanError: the plan lacks a section, does not have the one encoder that the data is for, has sizes that the
            data does not fit, or is for GPUs that are not here.
        UnwritableError: ``out`` cannot be made, or a file of the job cannot be written.
        JobError: a rank failed; the message names it.
    """
    check_sections(plan)
    check_sizes(plan)
    check_devices(plan)
    out = Path("runs", plan.name) if out is None else out
    files = RunFiles(out / "metrics.jsonl", trace, out / OVERLAP if with_overlap else None)
    _check_files(files)
    launch(_train_rank, plan, stop_after, files, is_debug, num_ranks=plan.world_size, backend=backend_of(plan))
    return files.metrics


def _check_files(files: RunFiles) -> None:
    """Make the folder of the metrics, and see that all files can be written: ranks would find out late."""
    folder = files.metrics.parent
    if folder.exists() and not folder.is_dir():
        raise UnwritableError(f"cannot write into {folder}: it is a file; give --out a folder, there or not")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    for path in filter(None, (files.metrics, files.trace, files.overlap)):
        is_new = not path.exists()
        try:
            path.open("a", encoding="utf-8").close()
        except OSError as error:
            flag = "--trace" if path == files.trace else "--out"
            raise UnwritableError(f"cannot write {path}: {error.strerror}; choose another {flag}") from None
        if is_new:
            # Other ranks under torchrun look as well.
            path.unlink(missing_ok=True)


def _train_rank(plan: Plan, stop_after: int | None, files: RunFiles, is_debug: bool) -> None:
    assert plan.training is not None
    trainer = Trainer(plan, is_debug=is_debug)
    num_steps = plan.training.steps if stop_after is None else min(stop_after, plan.training.steps)
    every = plan.training.evaluate_every or num_steps
    with files.metrics.open("w", encoding="utf-8") if dist.get_rank() == 0 else nullcontext() as file:
        log = _logger(plan, num_steps, file) if file else lambda *_: None

        def after_step(step: int, report: StepReport, norm: float) -> None:
            log(step, report, norm)
            num_done = step + 1
            if num_done == num_steps:
                _write_last_step(files, trainer)
            if num_done % every == 0 or num_done == num_steps:
                evaluation = trainer.evaluate()
                if file:
                    _write(file, evaluation_line(num_done, evaluation))
                    exact = f"{evaluation.pixels.exact_match:.1%} of those that need a look answered exactly"
                    _say(f"{plan.name}: after step {num_done} held-out loss {evaluation.loss:.4f}, {exact}")

        trainer.train(num_steps, after_step=after_step)


def _write_last_step(files: RunFiles, trainer: Trainer) -> None:
    found: dict[Path, Any] = {}
    if files.trace is not None:
        found[files.trace] = trainer.engine.timeline().to_json()
    if files.overlap is not None:
        found[files.overlap] = [overlap.to_json() for overlap in trainer.engine.overlap()]
    if dist.get_rank() == 0:
        for path, data in found.items():
            path.write_text(json.dumps(data), encoding="utf-8")


def evaluation_line(step: int, evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as a line of metrics.jsonl."""
    return {
        "step": step,
        "heldout_loss": evaluation.loss,
        "exact_match": {kind: tally.exact_match for kind, tally in evaluation.exact.items()},
        "exact_match_pixels": evaluation.pixels.exact_match,
        "exact_match_pixels_swapped": evaluation.pixels_swapped.exact_match,
    }


def _logger(plan: Plan, num_steps: int, file: TextIO) -> Callable[[int, StepReport, float], None]:
    began = time.monotonic()

    def log(step: int, report: StepReport, norm: float) -> None:
        elapsed = time.monotonic() - began
        _write(file, {"step": step, "elapsed_s": round(elapsed, 3), "grad_norm": norm, **asdict(report)})
        num_done = step + 1
        is_last = num_done == num_steps
        if sys.stderr.isatty() or step == 0 or is_last or num_done % max(1, num_steps // _LINES) == 0:
            left = elapsed / num_done * (num_steps - num_done)
            line = f"{plan.name}: step {num_done}/{num_steps}  loss {report.loss:.4f}  {left:.0f} s left"
            _say(line, is_kept=is_last or not sys.stderr.isatty())

    return log


def _say(line: str, *, is_kept: bool = True) -> None:
    """A line of progress in place of the one before on a terminal, if that was not kept, and behind it elsewhere."""
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{line}", end="\n" if is_kept else "", file=sys.stderr, flush=True)


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()
