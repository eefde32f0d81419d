"""The watchdog: what stands still is ended with its reason, what goes on is left alone."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from hetsched.errors import JobError
from hetsched.runtime.watchdog import Watchdog, end_process
from hetsched.train.launch import launch

pytestmark = pytest.mark.alone

LIMIT_S = 0.2


@pytest.fixture
def ended() -> list[Exception]:
    return []


def make_watchdog(ended: list[Exception]) -> Watchdog:
    return Watchdog(limit_s=LIMIT_S, missing=lambda: "message 3 of an edge", end=ended.append)


def test_a_step_that_stands_still_is_ended_with_what_it_waits_for_and_where_it_stands(ended: list[Exception]) -> None:
    with make_watchdog(ended).watching():
        time.sleep(3 * LIMIT_S)
    [error] = ended
    assert isinstance(error, JobError)
    assert re.fullmatch(r"message 3 of an edge; the host stands at \S*test_watchdog.py:\d+", str(error))


def test_progress_keeps_a_step_alive_and_an_ended_step_is_not_watched(ended: list[Exception]) -> None:
    watchdog = make_watchdog(ended)
    with watchdog.watching():
        for _ in range(10):
            time.sleep(LIMIT_S / 4)
            watchdog.progress()
    time.sleep(3 * LIMIT_S)
    assert not ended


def test_a_step_that_raises_is_not_watched_any_longer(ended: list[Exception]) -> None:
    with pytest.raises(ValueError, match="a step"), make_watchdog(ended).watching():
        raise ValueError("a step")
    time.sleep(3 * LIMIT_S)
    assert not ended


def stand_still(_: None) -> None:
    with Watchdog(limit_s=LIMIT_S, missing=lambda: "message 3 of an edge").watching():
        time.sleep(3600)


def test_the_launcher_hears_what_a_held_rank_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(JobError, match=r"rank 0: JobError: message 3 of an edge; the host stands at"):
        launch(stand_still, None, num_ranks=1)
    assert time.monotonic() - began < 60


def test_without_a_launcher_the_reason_goes_to_stderr_and_the_process_ends() -> None:
    code = f"from hetsched.runtime.watchdog import end_process; end_process(RuntimeError('{end_process.__name__}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "RuntimeError: end_process" in done.stderr
