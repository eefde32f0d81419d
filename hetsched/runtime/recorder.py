"""Measures what a rank does: one record an action, with the part of it spent waiting.

Times are the host's. On a GPU an action's are those of its launches, and all waiting is that of the step's end: nothing
is synchronized to find out more. Measured timelines of GPUs would need CUDA events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hetsched.schedule.action import Action


@dataclass(frozen=True, slots=True)
class Record:
    """One action as it ran on this rank; times from the start of the step.

    Args:
        action: what ran.
        start_ns, end_ns: when.
        ready_ns: when it had waited for rows or other ranks, which comes before its work; ``start_ns`` if it did not.
    """

    action: Action
    start_ns: int
    end_ns: int
    ready_ns: int

    @property
    def waited_ns(self) -> int:
        """How much of it was waiting."""
        return self.ready_ns - self.start_ns


class Recorder:
    """Collects the records of one step at a time."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.began_ns = self._ready_ns = 0

    def begin_step(self) -> None:
        """Forget the last step; times count from here."""
        self.records = []
        self.began_ns = time.perf_counter_ns()

    @contextmanager
    def action(self, action: Action) -> Iterator[None]:
        """Record the action that runs inside."""
        start = self._ready_ns = self.now()
        yield
        self.records.append(Record(action, start, self.now(), self._ready_ns))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What runs inside is waiting, and the action is not ready before its end."""
        yield
        self._ready_ns = self.now()

    def now(self) -> int:
        """Nanoseconds since the step began."""
        return time.perf_counter_ns() - self.began_ns

    @property
    def waited_ns(self) -> int:
        """Time that the step's actions spent waiting."""
        return sum(record.waited_ns for record in self.records)
