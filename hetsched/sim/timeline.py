"""What happened when on each lane, simulated or measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

from hetsched.errors import ScheduleError
from hetsched.schedule.action import Action, parse_action
from hetsched.schedule.program import Program
from hetsched.schedule.serialize import (
    program_from_json,
    program_to_json,
    read_format,
    read_list,
    read_object,
)

FORMAT = "hetsched-timeline-2"


class Stream(StrEnum):
    """The engines of a lane; each does one thing at a time."""

    COMPUTE = "compute"
    SEND = "send"
    RECEIVE = "receive"


class Span(NamedTuple):
    """One action on one engine of a lane.

    Args:
        lane, stream: where.
        start_ns, end_ns: when, from the start of the step.
        action: a compute action or a collective; for a message its SEND or its RECV.
        peer: for a message the lane at its other end. A message has a span at each end, of the same time.
        waited_ns: how long a measured action waited after it had begun, for messages of its own; 0 if simulated.
    """

    lane: int
    stream: Stream
    start_ns: int
    end_ns: int
    action: Action
    peer: int | None = None
    waited_ns: int = 0

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    @property
    def work_ns(self) -> int:
        """The part of it that was not waiting."""
        return self.duration_ns - self.waited_ns


@dataclass(frozen=True)
class Timeline:
    """The spans of one step of a program.

    Args:
        program: lowered; what was run.
        spans: by lane, stream and start.
        memory: for each lane (time, bytes held from then on); empty if not known.
        lower_bound_ns: no program of the same work can end earlier, by the costs it was simulated with.
    """

    program: Program
    spans: tuple[Span, ...]
    memory: tuple[tuple[tuple[int, int], ...], ...] = ()
    lower_bound_ns: int | None = None

    @cached_property
    def makespan_ns(self) -> int:
        """From the start of the step to its last end."""
        return max((span.end_ns for span in self.spans), default=0)

    @property
    def gap(self) -> float | None:
        """How far above its lower bound the makespan is, as a share of the bound."""
        return self.makespan_ns / self.lower_bound_ns - 1 if self.lower_bound_ns else None

    @cached_property
    def _by_stream(self) -> dict[tuple[int, Stream], tuple[Span, ...]]:
        found: dict[tuple[int, Stream], list[Span]] = {}
        for span in self.spans:
            found.setdefault((span.lane, span.stream), []).append(span)
        return {key: tuple(spans) for key, spans in found.items()}

    def stream(self, lane: int, stream: Stream) -> tuple[Span, ...]:
        """The spans of one engine of a lane, by start."""
        return self._by_stream.get((lane, stream), ())

    def to_json(self) -> dict[str, Any]:
        """The timeline as JSON values; the inverse of ``from_json``."""
        return {
            "format": FORMAT,
            "program": program_to_json(self.program),
            "spans": [_span_to_json(span) for span in self.spans],
            "memory": [[list(point) for point in curve] for curve in self.memory],
            "lower_bound_ns": self.lower_bound_ns,
        }

    @classmethod
    def from_json(cls, data: Any) -> Timeline:
        """The timeline of ``to_json``.

        Raises:
            ScheduleError: another format, an unknown or missing key, a wrong type.
        """
        read_format(data, FORMAT)
        bound = type(data.get("lower_bound_ns"))
        bound = bound if bound in (int, type(None)) else int
        fields = read_object(data, "timeline", format=str, program=dict, spans=list, memory=list, lower_bound_ns=bound)
        program = program_from_json(fields["program"])
        memory = tuple(tuple(_read_point(point) for point in read_list(c, "memory", list)) for c in fields["memory"])
        return make_timeline(
            program, map(_read_span, fields["spans"]), memory=memory, lower_bound_ns=fields["lower_bound_ns"]
        )


def make_timeline(
    program: Program,
    spans: Iterable[Span],
    *,
    memory: tuple[tuple[tuple[int, int], ...], ...] = (),
    lower_bound_ns: int | None = None,
) -> Timeline:
    """A timeline of spans in any order.

    Raises:
        ScheduleError: a span that ends before it starts, waits longer than it lasts, or is on a lane that the
            program does not have.
    """
    kept = sorted(spans, key=attrgetter("lane", "stream", "start_ns", "end_ns"))
    for span in kept:
        if not 0 <= span.start_ns <= span.end_ns or not 0 <= span.lane < len(program.lanes):
            raise ScheduleError(f"span {span.action} on lane {span.lane}: {span.start_ns} to {span.end_ns} ns")
        if not 0 <= span.waited_ns <= span.duration_ns:
            raise ScheduleError(f"span {span.action}: {span.waited_ns} of {span.duration_ns} ns waited")
    return Timeline(program, tuple(kept), memory, lower_bound_ns)


def _span_to_json(s: Span) -> list[Any]:
    return [s.lane, str(s.stream), s.start_ns, s.end_ns, str(s.action), s.peer, s.waited_ns]


def _read_span(data: Any) -> Span:
    types = [int, str, int, int, str, int]
    if not isinstance(data, list) or [type(x) for x in (*data[:5], *data[6:])] != types:
        raise ScheduleError(f"a span is [lane, stream, start, end, action, peer, waited], not {data!r:.80}")
    lane, stream, start_ns, end_ns, action, peer, waited_ns = data
    if stream not in tuple(Stream) or type(peer) not in (int, type(None)):
        raise ScheduleError(
            f"span {data!r:.80}: the stream is one of {[str(s) for s in Stream]}, the peer a lane or null"
        )
    return Span(lane, Stream(stream), start_ns, end_ns, parse_action(action), peer, waited_ns)


def _read_point(data: Any) -> tuple[int, int]:
    time_ns, held = read_list(data, "a point of a memory curve", int)
    return time_ns, held
