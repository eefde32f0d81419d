"""A job that is killed or interrupted ends soon, says which rank it was, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NUM_STEPS = 1_000_000
PLAN = """
name = "endless"
world_size = 2
microbatches = 2
modules = { vision = { first_rank = 0, layout.dp = 2 }, llm = { first_rank = 0, layout.pp = 2 } }
boundaries = [{ producer = "vision", consumer = "llm" }]
data = { batch_size = 4 }
training = { steps = NUM_STEPS }

[model]
vision = { kind = "vision", layers = 1, hidden = 8, heads = 1, ffn = 8, patch = 4, merge = 2 }
llm = { kind = "decoder", layers = 2, hidden = 8, heads = 1, kv_heads = 1, ffn = 8, vocab = 50 }
""".replace("NUM_STEPS", str(NUM_STEPS))
STARTED_S = 300.0
"""Generous: importing torch twice takes minutes on a machine that is busy with other things."""
ENDED_S = 60.0
"""The most that a job may take to end."""
GONE_S = 10.0
"""Servers without work end on their own, once they notice."""


@dataclass
class Job:
    """A running job: all its processes are of one session."""

    launcher: subprocess.Popen[str]

    def processes(self) -> dict[int, list[str]]:
        """Of the job's processes that are alive: pid -> command line."""
        return {pid: line for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if (line := self._own(pid))}

    def _own(self, pid: int) -> list[str]:
        try:
            # After the command's name, in parentheses: state, parent, process group, session.
            state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            return []
        return words if int(session) == self.launcher.pid and state not in "ZX" else []

    def ranks(self) -> list[int]:
        """Pids of the ranks, by rank: the children of the launcher's children, in the order of their start."""
        return sorted(pid for pid in self.processes() if parent(parent(pid)) == self.launcher.pid)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) if pid else 0


def wait_until(is_true: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


@contextmanager
def started(tmp_path: Path) -> Iterator[Job]:
    """A job that has just been started, none of whose processes is left behind."""
    (tmp_path / "plan.toml").write_text(PLAN)
    command = [sys.executable, "-m", "hetsched.cli", "train", "plan.toml", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Where the tests run in a background job Ctrl-C is ignored, and what ignores it is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes) as launcher:
        signal.signal(signal.SIGINT, before)
        job = Job(launcher)
        try:
            yield job
        finally:
            for pid in job.processes():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """A job in mid-step: it has done some steps and is far from its end."""
    metrics = tmp_path / "out" / "metrics.jsonl"
    with started(tmp_path) as job:
        wait_until(
            lambda: job.launcher.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 2),
            seconds=STARTED_S,
            what="three steps",
        )
        assert job.launcher.poll() is None, job.launcher.communicate()
        assert len(job.ranks()) == 2
        yield job


def end_of(job: Job, *, within_s: float = ENDED_S) -> str:
    """What the job says as it ends, non-zero and in time, with none of its processes left."""
    out, err = job.launcher.communicate(timeout=within_s)
    assert job.launcher.returncode != 0
    assert out == ""
    wait_until(lambda: not job.processes(), seconds=GONE_S, what=f"an end of {job.processes()}")
    progress = f"endless: step 1/{NUM_STEPS}  loss "
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith(progress))


def test_a_killed_rank_ends_the_job_and_is_named(job: Job) -> None:
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert end_of(job) == "JobError: rank 1 was ended by SIGKILL; the other ranks were stopped\n"
    assert job.launcher.returncode == 1


def test_control_c_ends_the_job(job: Job) -> None:
    os.killpg(job.launcher.pid, signal.SIGINT)
    assert end_of(job) == "interrupted; all ranks were stopped\n"
    assert job.launcher.returncode == 130


def test_control_c_before_the_ranks_are_there_ends_the_job_as_quietly(tmp_path: Path) -> None:
    """The server that will fork them is importing torch."""
    with started(tmp_path) as job:
        is_server = "multiprocessing.forkserver"
        wait_until(
            lambda: any(is_server in word for words in job.processes().values() for word in words),
            seconds=STARTED_S,
            what="a server",
        )
        time.sleep(0.3)
        os.killpg(job.launcher.pid, signal.SIGINT)
        # The server notices once torch is there.
        assert end_of(job, within_s=STARTED_S) == "interrupted; all ranks were stopped\n"
        assert job.launcher.returncode == 130


def test_no_rank_outlives_its_launcher(job: Job) -> None:
    job.launcher.kill()
    assert end_of(job) == ""
    assert job.launcher.returncode == -signal.SIGKILL
