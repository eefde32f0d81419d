"""What the host does between a step's actions has its place among them, and is part of none."""

from __future__ import annotations

import time

import pytest

from hetsched.runtime.exchange import Exchange
from hetsched.runtime.executor import Executor
from hetsched.runtime.measure.recorder import Recorder
from hetsched.schedule.action import parse_action
from tests.dist.test_lent_rows import CPU, ME, Lender, Same, Work

pytestmark = pytest.mark.alone

SLEEP_S = 0.4
ACTIONS = [parse_action(f"llm:{text}") for text in ("1RECV_F0", "1F0", "1SEND_F0")]


@pytest.mark.parametrize("begun", range(len(ACTIONS) + 1))
def test_it_is_done_after_so_many_actions(begun: int) -> None:
    recorder, ended = Recorder(), []

    def meanwhile() -> None:
        ended.append(len(recorder._ran))
        time.sleep(SLEEP_S)

    exchange = Exchange(ME, Lender(), device=CPU)
    executor = Executor({("llm", 1): Same()}, exchange=exchange, recorder=recorder, reduce=lambda *_: None)
    recorder.begin_step()
    executor.run(ACTIONS, Work(ACTIONS), is_training=True, meanwhile={begun: meanwhile})  # type: ignore[arg-type]
    recorder.end_step()
    assert ended == [begun]
    assert [record.action for record in recorder.records] == ACTIONS
    assert all(record.end_ns - record.start_ns < SLEEP_S * 1e9 for record in recorder.records)
    starts = [record.start_ns for record in recorder.records]
    assert all((start >= SLEEP_S * 1e9) == (place >= begun) for place, start in enumerate(starts))
