"""Measures the messages of context-parallel attention, which are sent and waited for inside of actions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from hetsched.parallel.meter import UNMEASURED, Passage
from hetsched.runtime.events import OfWorks
from hetsched.runtime.measure.recorder import Recorder, Wait


@dataclass(frozen=True, slots=True)
class Passed:
    """What one rank sent and received together inside an action.

    Args:
        num_bytes: that it sent, or fetched.
        posted_ns, arrived_ns: between which it was under way, from the start of the step.
        waited_ns: how long the rank waited for it.
    """

    num_bytes: int
    posted_ns: int
    arrived_ns: int
    waited_ns: int


class ContextMeter:
    """The Meter of one module: records the messages of its context-parallel attention.

    Args:
        recorder: of this rank.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._passages: list[_Passage] = []

    def begin_step(self) -> None:
        """Forget the last step's messages."""
        self._passages = []

    def passage(self, num_bytes: int) -> Passage:
        """As in Meter; what is sent while no action runs is not measured."""
        if not self._recorder.is_recording:
            return UNMEASURED.passage(num_bytes)
        self._passages.append(_Passage(self._recorder, num_bytes))
        return self._passages[-1]

    def passed(self) -> tuple[Passed, ...]:
        """What was measured, once the recorder's step has ended."""
        return tuple(passage.passed() for passage in self._passages)


class _Passage:
    """As in hetsched.parallel.meter."""

    def __init__(self, recorder: Recorder, num_bytes: int) -> None:
        self._recorder, self._num_bytes = recorder, num_bytes
        self._posted = recorder.mark()
        self._arrived: int | None = None
        self._waits: list[Wait] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        with self._recorder.waiting() as wait:
            yield
        self._waits.append(wait)

    def arrives_with(self, works: Sequence[dist.Work]) -> None:
        self._arrived = self._recorder.arrival(OfWorks(works))

    def arrived(self) -> None:
        self._arrived = self._recorder.mark_here()

    def passed(self) -> Passed:
        time_ns = self._recorder.time_ns
        waits = [(time_ns(wait.start), time_ns(wait.end)) for wait in self._waits]
        posted = time_ns(self._posted)
        # Without waits and unseen it was never missed.
        arrived = max((end for _, end in waits), default=posted) if self._arrived is None else time_ns(self._arrived)
        return Passed(self._num_bytes, posted, max(posted, arrived), sum(end - start for start, end in waits))
