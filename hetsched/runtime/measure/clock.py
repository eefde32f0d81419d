"""Moments of a step, and their times on one clock: that of the host, which its processes share.

A moment is when all is done that was given so far to where actions run. Its time is known once the step has ended, so
that nothing waits for it within the step: on a CPU it is now, on a GPU an event says it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from hetsched.runtime.events import Arrival, Event, EventPool

_NS_PER_MS = 1e6
_NUM_TRIES = 3


class Clock(Protocol):
    """Numbers the moments of a step.

    Attributes:
        began_ns: when the step began, of ``time.perf_counter_ns``.
        drift_ns: how much longer than for the host the step was for the clock of the device.
    """

    began_ns: int
    drift_ns: int

    def begin(self) -> None:
        """Forget the last step's moments; times count from here."""

    def mark(self) -> int:
        """The moment at which all is done that was given so far to the stream on which actions run."""

    def mark_posted(self, last: int) -> int:
        """The same, where nothing but messages was posted since the moment ``last``."""

    def mark_here(self) -> int:
        """The same of the current stream, where that is another one."""

    def arrival(self, of: Arrival) -> int | None:
        """The moment at which messages arrive; None if nobody sees it but who waits for them."""

    def end(self) -> Sequence[int]:
        """Nanoseconds from the beginning of the step to each moment; waits until the last has passed."""


class HostClock:
    """Moments of a CPU, whose work is done when the host goes on."""

    def __init__(self) -> None:
        self._times: list[int] = []
        self.began_ns = self.drift_ns = 0

    def begin(self) -> None:
        """As in Clock."""
        self._times = []
        self.began_ns = time.perf_counter_ns()

    def mark(self) -> int:
        """As in Clock."""
        self._times.append(time.perf_counter_ns() - self.began_ns)
        return len(self._times) - 1

    def mark_posted(self, last: int) -> int:
        """As in Clock: a host that posts does it itself."""
        return self.mark()

    def mark_here(self) -> int:
        """As in Clock."""
        return self.mark()

    def arrival(self, of: Arrival) -> int | None:
        """As in Clock: a message of gloo's is seen by whom waits for it."""
        return None

    def end(self) -> Sequence[int]:
        """As in Clock."""
        return self._times


class EventClock:
    """Moments of a GPU: events on its streams, most of which are kept and used again in each step.

    The device's clock is held against the host's before the step and after it, where nothing is left to do; between
    the two a moment costs the host a few microseconds, most of which are CUDA's: the stream on which actions run is
    asked for once a step. An arrival that has no event of its own is seen by a stream that waits for nothing else, in
    the order in which it is asked for: what overtakes a message that was asked for before seems to arrive with it.

    Args:
        make_event: makes an event.
        current: the current stream.
        aside: a stream of the clock's own.
        now_ns: the host's clock.
    """

    def __init__(
        self,
        make_event: Callable[[], Event],
        *,
        current: Callable[[], Any],
        aside: Any,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._make_event, self._current, self._now_ns = make_event, current, now_ns
        self._work, self._aside = current(), aside
        self._moments: list[Event] = []
        self._events = EventPool(make_event)
        self._origin = make_event()
        self.began_ns = self.drift_ns = 0

    @classmethod
    def of(cls, device: torch.device) -> EventClock:
        """The clock of a GPU."""
        return cls(
            partial(torch.Event, device, enable_timing=True),
            current=partial(torch.cuda.current_stream, device),
            aside=torch.Stream(device),
        )

    def begin(self) -> None:
        """As in Clock; waits until the current stream has nothing left to do."""
        self._events.take_back()
        self._moments, self._work = [], self._current()
        self._origin, self.began_ns = self._meet()

    def mark(self) -> int:
        """As in Clock."""
        event = self._events.take()
        event.record(self._work)
        self._moments.append(event)
        return len(self._moments) - 1

    def mark_posted(self, last: int) -> int:
        """As in Clock: messages take nothing of the stream."""
        return last

    def mark_here(self) -> int:
        """As in Clock."""
        event = self._events.take()
        event.record(self._current())
        self._moments.append(event)
        return len(self._moments) - 1

    def arrival(self, of: Arrival) -> int | None:
        """As in Clock."""
        self._moments.append(of.seen(self._aside, self._events))
        return len(self._moments) - 1

    def end(self) -> Sequence[int]:
        """As in Clock."""
        for event in self._moments:
            event.synchronize()
        last, ended_ns = self._meet()
        self.drift_ns = self._since_origin(last) - (ended_ns - self.began_ns)
        return [self._since_origin(event) for event in self._moments]

    def _meet(self) -> tuple[Event, int]:
        """An event, and the host's time of it: of several tries the one that held the host least."""
        _, event, at_ns = min((self._try() for _ in range(_NUM_TRIES)), key=lambda tried: tried[0])
        return event, at_ns

    def _try(self) -> tuple[int, Event, int]:
        event, before = self._make_event(), self._now_ns()
        event.record(self._work)
        event.synchronize()
        after = self._now_ns()
        return after - before, event, (before + after) // 2

    def _since_origin(self, event: Event) -> int:
        return round(self._origin.elapsed_time(event) * _NS_PER_MS)


def clock_of(device: torch.device) -> Clock:
    """The clock of the actions that run on ``device``."""
    return HostClock() if device.type == "cpu" else EventClock.of(device)
