"""Events of a GPU, and the arrivals of messages that they tell.

Making an event holds the host for longer than recording it, so those of one step serve the next again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A CUDA event with its time."""

    @property
    def event_id(self) -> Any:
        """CUDA's handle, once it was recorded."""

    def record(self, stream: Any = None) -> Any: ...

    def wait(self, stream: Any = None) -> Any:
        """Hold a stream, by default the current one, until what was recorded."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds to a later event."""


def recorded_event(device: torch.device) -> torch.Event:
    """One that was recorded once: only then does CUDA know it, so that others than torch can record it again."""
    event = torch.Event(device, enable_timing=True)
    event.record()
    return event


class EventPool:
    """Events that are taken one after the other, and all given back at once.

    Args:
        make: makes one more.
    """

    def __init__(self, make: Callable[[], Event]) -> None:
        self._make = make
        self._events: list[Event] = []
        self._num_taken = 0

    def take(self) -> Event:
        """One that nobody has taken since ``take_back``."""
        number = self._num_taken
        self._num_taken = number + 1
        try:
            return self._events[number]
        except IndexError:
            self._events.append(self._make())
            return self._events[number]

    def take_back(self) -> None:
        """Nobody waits for those that were taken, or asks for their times, any more."""
        self._num_taken = 0


class Arrival(Protocol):
    """The arrival of messages, past or to come."""

    def seen(self, aside: Any, events: EventPool) -> Event:
        """An event of when it is: one that there is, or one of the pool on a stream that is made to wait for it."""


@dataclass(frozen=True, slots=True)
class OfWorks:
    """All of several works of torch.distributed, for which the current stream alone can wait."""

    works: Sequence[Any]

    def seen(self, aside: Any, events: EventPool) -> Event:
        """As in Arrival."""
        with aside:
            for work in self.works:
                work.wait()
        event = events.take()
        event.record(aside)
        return event
