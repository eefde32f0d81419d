"""What the ranks recorded of a step, as a timeline of its program: the same form that the simulator gives.

Waiting is idle time: a compute action's span starts when its inputs had arrived, a collective's when the last of its
ranks came to it. A message is on its way from its SEND until the action after its RECV went on, if that had to wait;
otherwise nobody saw it arrive, and its span is the SEND's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hetsched.check.flat import FlatProgram
from hetsched.check.validate import check
from hetsched.runtime.recorder import Record
from hetsched.schedule.action import Action
from hetsched.schedule.program import Program
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline

_SHORTEST_WAIT_NS = 50_000
"""To ask for what is there already takes time too."""


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

    A lane shows its rank with the most work, which is the one that the others wait for.

    Args:
        program: what was run.
        traces: of every rank. Times compare between ranks of one host; between hosts they are as good as
            the hosts' clocks.
    """
    zero = min(trace.began_ns for trace in traces)
    entered = _collectives_entered(traces)
    busiest = [
        max((trace for trace in traces if trace.lane == lane), key=lambda trace: trace.busy_ns)
        for lane in range(len(program.lanes))
    ]
    spans = [span for trace in busiest for span in _compute_spans(trace, entered)]
    spans += _message_spans(check(program), busiest)
    return make_timeline(program, (s._replace(start_ns=s.start_ns - zero, end_ns=s.end_ns - zero) for s in spans))


def _collectives_entered(traces: Sequence[RankTrace]) -> dict[Action, int]:
    """When the last rank came to each collective, on the common clock as all times below."""
    entered: dict[Action, int] = {}
    for trace in traces:
        for record in trace.records:
            if record.action.kind.is_collective:
                start = trace.began_ns + record.start_ns
                entered[record.action] = max(entered.get(record.action, start), start)
    return entered


def _compute_spans(trace: RankTrace, entered: Mapping[Action, int]) -> Iterator[Span]:
    for record in trace.records:
        action, end = record.action, trace.began_ns + record.end_ns
        if action.kind.is_transfer:
            continue
        start = entered.get(action, trace.began_ns + record.start_ns + record.waited_ns)
        yield Span(trace.lane, Stream.COMPUTE, min(start, end), end, action)


def _message_spans(flat: FlatProgram, traces: Sequence[RankTrace]) -> Iterator[Span]:
    """Both ends of every message. Ranks run their lane's list in order, so the n-th record is of its n-th action."""
    arrivals = [_arrivals(trace) for trace in traces]
    for source, destination, send, receive in flat.compiled.messages:
        sent = traces[source].records[send - flat.lane_begin[source]]
        place = receive - flat.lane_begin[destination]
        start, posted = (traces[source].began_ns + time for time in (sent.start_ns, sent.end_ns))
        end = max(posted, arrivals[destination][place])
        yield Span(source, Stream.SEND, start, end, sent.action, destination)
        yield Span(destination, Stream.RECEIVE, start, end, traces[destination].records[place].action, source)


def _arrivals(trace: RankTrace) -> list[int]:
    """For each record when the next compute action went on, or 0 if it did not wait."""
    result, went_on = [], 0
    for record in reversed(trace.records):
        if record.action.kind.is_compute:
            has_waited = record.waited_ns >= _SHORTEST_WAIT_NS
            went_on = trace.began_ns + record.start_ns + record.waited_ns if has_waited else 0
        result.append(went_on)
    return result[::-1]
