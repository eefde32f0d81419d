"""Measures what a rank does: one record an action, with the parts of it spent waiting, and the host's share.

Times are those of where actions run: the host's on a CPU, those of CUDA events on the compute stream of a GPU, see
hetsched.runtime.measure.clock. There an action ends when the stream has done what it launched, and waits where the
stream does. What an action takes of the host is a figure of its own; where that is as long as the action, the GPU
may have stood idle between two kernels, which the action's times do not show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from hetsched.runtime.events import Arrival
from hetsched.runtime.measure.clock import Clock, HostClock
from hetsched.schedule.action import Action


@dataclass(frozen=True, slots=True)
class Record:
    """One action as it ran on this rank; times from the start of the step.

    Args:
        action: what ran.
        start_ns, end_ns: when; it starts where the one before it ends, or the step begins. On a GPU a transfer takes no
            time.
        ready_ns: when it had waited for what comes before its work: rows, or other ranks; ``start_ns`` if it did not.
        inner_wait_ns: how long it waited after it had begun to work.
        arrived_ns: for a SEND when its messages had arrived, if anybody saw it.
        host_ns: how long the host was at it.
        stage_host_ns: the part of it spent in the stage's own code.
    """

    action: Action
    start_ns: int
    end_ns: int
    ready_ns: int
    inner_wait_ns: int = 0
    arrived_ns: int | None = None
    host_ns: int = 0
    stage_host_ns: int = 0

    @property
    def waited_ns(self) -> int:
        """How much of it was waiting."""
        return self.ready_ns - self.start_ns + self.inner_wait_ns

    @property
    def work_ns(self) -> int:
        """How much of it was not."""
        return self.end_ns - self.start_ns - self.waited_ns


@dataclass(slots=True)
class Wait:
    """The moments between which something was waited for."""

    start: int
    end: int


@dataclass(slots=True)
class _Running:
    """An action that is being recorded, in moments."""

    action: Action
    start: int
    end: int
    ready: int
    inner: list[Wait] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    has_worked: bool = False
    host_ns: int = 0
    stage_host_ns: int = 0

    def waited(self, wait: Wait) -> None:
        """It did, at its beginning or after it had begun to work."""
        if self.has_worked:
            self.inner.append(wait)
        else:
            self.ready = wait.end


class _OnExit:
    """Calls ``do`` once what runs inside is done, unless that raises; a generator would hold the host for longer."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._do()


class Recorder:
    """Collects the records of one step at a time.

    Args:
        clock: of where actions run.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = HostClock() if clock is None else clock
        self._ran: list[_Running] = []
        self._running: _Running | None = None
        self._last = self._action_began_ns = self._work_began_ns = 0
        self._end_action, self._end_work = _OnExit(self._action_ended), _OnExit(self._work_ended)
        self._times: Sequence[int] = ()
        self._began_ns = 0
        self.records: tuple[Record, ...] = ()
        self.step_ns = 0

    def begin_step(self) -> None:
        """Forget the last step; times count from here."""
        self._ran = []
        self.records = ()
        self._clock.begin()
        self._last = self._clock.mark()
        self._began_ns = time.perf_counter_ns()

    def end_step(self) -> None:
        """Make the records; on a GPU this waits until the step's work is done.

        ``step_ns`` is then what the step took on the host.
        """
        self.step_ns = time.perf_counter_ns() - self._began_ns
        self._times = self._clock.end()
        self.records = tuple(self._record(ran) for ran in self._ran)

    def action(self, action: Action) -> AbstractContextManager[None]:
        """Record the action that runs inside."""
        self._action_began_ns, start = time.perf_counter_ns(), self._last
        self._running = _Running(action, start, start, start)
        return self._end_action

    def _action_ended(self) -> None:
        running, self._running = self._running, None
        assert running is not None, "actions are not nested"
        if running.action.kind.is_transfer:
            # What packing there is counts as the next action's.
            running.end = self._last = self._clock.mark_posted(running.start)
        else:
            running.end = self._last = self._clock.mark()
        running.host_ns = time.perf_counter_ns() - self._action_began_ns
        self._ran.append(running)

    def pause(self, do: Callable[[], None]) -> None:
        """Do what is no part of an action: the next one starts after it."""
        do()
        self._last = self._clock.mark()

    def working(self) -> AbstractContextManager[None]:
        """What runs inside is a stage's own code; what the action waits for from now on is no longer its beginning."""
        assert self._running is not None, "only actions work"
        self._running.has_worked = True
        self._work_began_ns = time.perf_counter_ns()
        return self._end_work

    def _work_ended(self) -> None:
        assert self._running is not None, "only actions work"
        self._running.stage_host_ns += time.perf_counter_ns() - self._work_began_ns

    @contextmanager
    def waiting(self) -> Iterator[Wait]:
        """What runs inside is waiting; gives its moments, the second of which is known afterwards."""
        wait = Wait(self._clock.mark(), 0)
        yield wait
        wait.end = self._clock.mark()
        if self._running is not None:
            self._running.waited(wait)

    def wait_for(self, wait: Callable[[], Arrival | None]) -> Wait:
        """The moments of a wait, which may tell by itself when it ended."""
        start = self._clock.mark()
        seen = wait()
        end = None if seen is None else self._clock.arrival(seen)
        waited = Wait(start, self._clock.mark() if end is None else end)
        if self._running is not None:
            self._running.waited(waited)
        return waited

    @property
    def is_recording(self) -> bool:
        """Whether an action runs now."""
        return self._running is not None

    def mark(self) -> int:
        """A moment; see Clock."""
        return self._clock.mark()

    def mark_here(self) -> int:
        """A moment of the current stream; see Clock."""
        return self._clock.mark_here()

    def arrival(self, of: Arrival) -> int | None:
        """The moment at which messages arrive, if anybody sees it; see Clock."""
        return self._clock.arrival(of)

    def sent(self, messages: Sequence[Arrival]) -> tuple[int, list[int]]:
        """The moment at which rows were there that the running action sends, and those at which its messages arrive.

        The latter are empty if nobody sees them; the action's record keeps them.
        """
        arrived = [moment for of in messages if (moment := self._clock.arrival(of)) is not None]
        if self._running is None:
            return self._clock.mark(), arrived
        self._running.arrived += arrived
        return self._running.start, arrived

    def time_ns(self, moment: int) -> int:
        """Nanoseconds from the start of the step to a moment; once the step has ended."""
        return self._times[moment]

    def last_ns(self, moments: Sequence[int]) -> int | None:
        """As ``time_ns``, of the last of several moments; None where there are none."""
        return max((self._times[moment] for moment in moments), default=None)

    @property
    def began_ns(self) -> int:
        """The time from which times count, on the clock that the processes of a host share."""
        return self._clock.began_ns

    @property
    def drift_ns(self) -> int:
        """How far the clock of the actions had gone ahead of the host's at the end of the step."""
        return self._clock.drift_ns

    @property
    def waited_ns(self) -> int:
        """Time that the step's actions spent waiting."""
        return sum(record.waited_ns for record in self.records)

    def _record(self, ran: _Running) -> Record:
        return Record(
            ran.action,
            self._times[ran.start],
            self._times[ran.end],
            self._times[ran.ready],
            inner_wait_ns=sum(self._times[wait.end] - self._times[wait.start] for wait in ran.inner),
            arrived_ns=self.last_ns(ran.arrived),
            host_ns=ran.host_ns,
            stage_host_ns=ran.stage_host_ns,
        )
