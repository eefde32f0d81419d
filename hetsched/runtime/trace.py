"""What the ranks recorded of a step, as a timeline of its program: the same form that the simulator gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hetsched.runtime.recorder import Record
from hetsched.schedule.program import Program
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline


@dataclass(frozen=True)
class RankTrace:
    """The records of one rank.

    Args:
        lane: the lane that the rank belongs to.
        began_ns: when its step began, on a clock that all ranks of a host share.
        records: its actions.
    """

    lane: int
    began_ns: int
    records: tuple[Record, ...]

    @property
    def busy_ns(self) -> int:
        """Time in actions that was not waiting."""
        return sum(r.end_ns - r.start_ns - r.waited_ns for r in self.records)


def measured_timeline(program: Program, traces: Sequence[RankTrace]) -> Timeline:
    """The timeline of a step.

    A lane shows its rank with the most work, which is the one that the others wait for. A compute action's span
    leaves out what it waited for rows at its start; a collective's includes the wait for the others.

    Args:
        program: what was run.
        traces: of every rank. Times compare between ranks of one host; between hosts they are as good as
            the hosts' clocks.
    """
    zero = min(trace.began_ns for trace in traces)
    spans: list[Span] = []
    for lane in range(len(program.lanes)):
        busiest = max((trace for trace in traces if trace.lane == lane), key=lambda trace: trace.busy_ns)
        spans += _spans(busiest, busiest.began_ns - zero)
    return make_timeline(program, spans)


def _spans(trace: RankTrace, offset: int) -> Iterator[Span]:
    for record in trace.records:
        action = record.action
        if action.kind.is_transfer:
            continue
        waited = 0 if action.kind.is_collective else record.waited_ns
        yield Span(trace.lane, Stream.COMPUTE, offset + record.start_ns + waited, offset + record.end_ns, action)
