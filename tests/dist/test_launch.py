"""The launcher: what each rank does and says comes out as one answer, and no rank is left."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from hetsched.errors import DataError, JobError
from hetsched.train import launch as launcher
from hetsched.train.launch import launch
from tests.dist.pool import Pool

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("ranks")]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE_S", 1.0)


def sum_of_ranks(folder: Path) -> None:
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    (folder / str(dist.get_rank())).write_text(str(int(total)))


def bad_data(_: Path) -> None:
    # As where an engine has compared notes: every rank is there, and all raise.
    dist.barrier()
    time.sleep(0.5)
    error = DataError("sample 3 is bad")
    error.add_note("in the forward of stage 0")
    raise error


def bad_code(_: Path) -> None:
    # A rank that is still connecting when another one leaves fails as well, and says so.
    dist.barrier()
    if dist.get_rank() == 2:
        time.sleep(0.5)
        raise ValueError("a bug")
    time.sleep(60)


def bad_code_that_others_wait_for(_: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 2:
        raise ValueError("a bug")
    if dist.get_rank() == 1:
        raise JobError("nothing arrived from rank 2")
    dist.recv(torch.zeros(1), src=2)


def left_by_exit(_: Path) -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def killed(_: Path) -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    # The others notice, and fail in their own way.
    dist.barrier()


def killed_by_the_error_of_another(_: Path) -> None:
    dist.barrier()
    if dist.get_rank() == 2:
        raise ValueError("a bug")
    if dist.get_rank() == 0:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGABRT)
    dist.recv(torch.zeros(1), src=2)


def killed_while_others_hang(_: Path) -> None:
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def pids_of_children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def test_every_rank_runs_in_one_group(tmp_path: Path) -> None:
    launch(sum_of_ranks, tmp_path, num_ranks=3)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (bad_data, r"^ranks 0, 1, 2: DataError: sample 3 is bad\nin the forward of stage 0$"),
        (bad_code, r"^rank 2: Traceback[\s\S]*ValueError: a bug\n$"),
        (bad_code_that_others_wait_for, r"^rank 2: Traceback[\s\S]*ValueError: a bug[\s\S]*rank 1: JobError: nothing"),
        (left_by_exit, r"rank 1: ended with exit code 7"),
        (killed, r"^rank 1 was ended by SIGKILL; the other ranks were stopped$"),
        (
            killed_by_the_error_of_another,
            r"^rank 2: Traceback[\s\S]*ValueError: a bug\n\nrank 0 was ended by SIGABRT; the other ranks were stopped$",
        ),
        (killed_while_others_hang, r"^rank 0 was ended by SIGSEGV; the other ranks were stopped$"),
    ],
)
def test_a_job_that_fails_says_which_rank_and_why_and_leaves_none(
    worker: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    before, start = pids_of_children(), time.monotonic()
    with pytest.raises(JobError, match=message):
        launch(worker, tmp_path, num_ranks=3)
    assert pids_of_children() == before
    assert time.monotonic() - start < 30


def test_a_worker_that_is_no_function_of_a_module_is_refused_before_anything_is_started() -> None:
    before = pids_of_children()
    with pytest.raises(TypeError, match=r"cannot be sent .*lambda.* it must be a function of a module"):
        launch(lambda: None, num_ranks=2)
    assert pids_of_children() == before


def test_under_torchrun_the_process_is_a_rank_already(tmp_path: Path, ranks: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks.run(launch_as_torchrun, tmp_path, port, num_ranks=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "1", "1": "1"}


FAILS_UNDER_TORCHRUN = """
import os, time
from unittest import mock
import torch.distributed as dist
from hetsched.errors import JobError
from hetsched.train.launch import launch

def fails():
    raise {error}

os.environ |= dict(RANK="0", WORLD_SIZE="1")
# As of a job whose peer is gone: its messages never end.
never = mock.Mock(side_effect=lambda: time.sleep(3600))
with mock.patch.object(dist, "init_process_group"), mock.patch.object(dist, "destroy_process_group", never):
    launch(fails, num_ranks=1, backend="cpu:gloo,cuda:nccl")
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("JobError('nothing arrived from rank 1')", r"JobError: nothing arrived from rank 1\n"),
        ("ValueError('a bug')", r"Traceback[\s\S]*in fails[\s\S]*ValueError: a bug\n+"),
    ],
)
def test_under_torchrun_a_failure_does_not_wait_for_messages_of_nccl(error: str, said: str) -> None:
    command = [sys.executable, "-c", FAILS_UNDER_TORCHRUN.format(error=error)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert re.fullmatch(said, run.stderr), run.stderr


def launch_as_torchrun(folder: Path, port: int) -> None:
    """As a rank of torchrun: where to meet is in the environment."""
    rank = dist.get_rank()
    dist.destroy_process_group()
    meeting = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with mock.patch.dict(os.environ, meeting):
        launch(sum_of_ranks, folder, num_ranks=2)
