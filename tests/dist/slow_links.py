"""Messages that take their time, and work that takes its own: what the tests of overlap run on ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from hetsched.batch import Batch
from hetsched.layout.tokens import tokens_of
from hetsched.models.multimodal import builders
from hetsched.parallel import ring
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.runtime.events import Arrival
from hetsched.runtime.exchange import Message, Transfer
from hetsched.runtime.measure.context_meter import ContextMeter, Passed
from hetsched.runtime.measure.recorder import Recorder, Wait
from hetsched.runtime.report import StepReport
from hetsched.runtime.transport.gloo import GlooTransport
from hetsched.schedule.action import Kind, act
from hetsched.sim.overlap import Overlap
from tests.dist.context_cases import ContextCase
from tests.dist.context_work import results_of, task_of
from tests.dist.ragged import RaggedSource


class SlowLinks(GlooTransport):
    """Gloo, whose messages leave ``delay_s`` after they were sent."""

    def __init__(self, *, timeout: timedelta, delay_s: float) -> None:
        super().__init__(timeout=timeout)
        self._delay_s, self._lock = delay_s, threading.Lock()
        self._leaving: list[threading.Timer] = []

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        timer = threading.Timer(self._delay_s, self._leave, (transfer, messages))
        timer.start()
        self._leaving.append(timer)
        return ()

    def _leave(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        # Timers have threads of their own, and a transport keeps its list of what was sent for one.
        with self._lock:
            super().send(transfer, messages)

    def flush(self) -> None:
        for timer in self._leaving:
            timer.join()
        self._leaving.clear()
        super().flush()


def unmarked(recorder: Recorder, wait: Callable[[], object]) -> Wait:
    """A mutant of Recorder.wait_for, whose waits take no time."""
    moment = recorder.mark()
    wait()
    return Wait(moment, moment)


def overlap_of_a_step(
    plan: Plan, work_s: Sequence[float], delay_s: float, is_mutant: bool = False
) -> tuple[list[Overlap], StepReport]:
    """A step in which a stage of the LLM works for ``work_s`` in each forward.

    Args:
        plan: of two stages of the LLM.
        work_s: by stage.
        delay_s: of each message.
        is_mutant: nobody marks waits.
    """

    def working(stage: int, mesh: Any) -> nn.Module:
        module = builders(plan)["llm"](stage, mesh)
        module.register_forward_pre_hook(lambda *_: time.sleep(work_s[stage]))
        return module

    links = partial(SlowLinks, delay_s=delay_s)
    with mock.patch("hetsched.runtime.engine.GlooTransport", links):
        engine = Engine(plan, {**builders(plan), "llm": working}, timeout_s=30.0)
    batch = Batch.of(RaggedSource(plan.seed, items="equal"), range(2 * plan.microbatches))
    with mock.patch.object(Recorder, "wait_for", unmarked) if is_mutant else nullcontext():
        report = engine.step(batch)
    return list(engine.overlap()), report


class Late:
    """A message that has arrived ``delay_s`` after it was posted, or later."""

    def __init__(self, work: dist.Work, delay_s: float) -> None:
        self._work, self._at = work, time.monotonic() + delay_s

    def wait(self) -> None:
        self._work.wait()
        time.sleep(max(0.0, self._at - time.monotonic()))


@contextmanager
def slow_ring(*, work_s: float, delay_s: float) -> Iterator[None]:
    """Each step of the ring works for so long, and each message is under way for so long."""
    post, step = dist.batch_isend_irecv, ring.forward_step

    def late(operations: list[dist.P2POp]) -> list[Late]:
        return [Late(work, delay_s) for work in post(operations)]

    def working(*args: Any, **options: Any) -> Any:
        time.sleep(work_s)
        return step(*args, **options)

    with mock.patch.object(dist, "batch_isend_irecv", late), mock.patch.object(ring, "forward_step", working):
        yield


def ring_forward(case: ContextCase, work_s: float, delay_s: float) -> tuple[tuple[Passed, ...], int]:
    """What a forward over a slow ring hid, as its meter saw it, and what its action waited for inside."""
    group = dist.group.WORLD
    assert group is not None
    recorder = Recorder()
    meter = ContextMeter(recorder)
    task = replace(task_of(case, dist.get_rank()), meter=meter)
    own = torch.from_numpy(tokens_of(case.token_map, task.rank))
    q, k, v = (x[own] for x in case.inputs()[:3])
    # The first call also makes the task's parts, which takes longer than a message.
    ring.forward(q, k, v, task, group=group)
    dist.barrier()
    recorder.begin_step()
    with slow_ring(work_s=work_s, delay_s=delay_s), recorder.action(act("llm", 0, Kind.F, 0)), recorder.working():
        ring.forward(q, k, v, task, group=group)
    recorder.end_step()
    return meter.passed(), recorder.records[0].inner_wait_ns


def context_bytes(case: ContextCase) -> int:
    """Bytes that a forward and a backward sent from this rank, as the meter says; others, outside a step, are none."""
    group = dist.group.WORLD
    assert group is not None
    recorder = Recorder()
    meter = ContextMeter(recorder)
    task = replace(task_of(case, dist.get_rank()), meter=meter)
    own = torch.from_numpy(tokens_of(case.token_map, task.rank))
    q, k, v, dout = (x[own] for x in case.inputs())
    results_of(q, k, v, dout, task=task, group=group)
    recorder.begin_step()
    with recorder.action(act("llm", 0, Kind.F, 0)):
        results_of(q, k, v, dout, task=task, group=group)
    recorder.end_step()
    return sum(passage.num_bytes for passage in meter.passed())
