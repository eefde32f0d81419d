"""The records of all ranks as one timeline of the step that they ran.

A lane is several ranks, each with its own share of every microbatch; its row is that of its busiest rank, the one that
the others wait for. Waiting is idle time: an action's span starts when its inputs had arrived, a
collective's when the last of its ranks came to it.

A message is on its way from its SEND until the action after its RECV went on, if that had to wait; otherwise nobody
saw it arrive, and its span is the SEND's. Times count from each rank's own start of the step, which follows an
all-reduce: clocks of two ranks are apart by as much as they leave it at different times, well under a millisecond
on one host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hetsched.check.flat import FlatProgram
from hetsched.check.validate import check
from hetsched.runtime.recorder import Record
from hetsched.schedule.action import Action
from hetsched.schedule.program import Program
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline

_SHORTEST_WAIT_NS = 50_000
"""To ask for what is there already takes time too."""


def measured_timeline(
    program: Program, lanes: Sequence[Sequence[int]], records: Sequence[Sequence[Record]]
) -> Timeline:
    """The timeline of one step.

    Args:
        program: what was run.
        lanes: for each lane its ranks.
        records: for each rank its records of the step.
    """
    entered = _collectives_entered(records)
    busiest = [records[max(ranks, key=lambda rank: (_work(records[rank]), -rank))] for ranks in lanes]
    spans = [
        _compute_span(lane, record, entered)
        for lane, of_lane in enumerate(busiest)
        for record in of_lane
        if not record.action.kind.is_transfer
    ]
    return make_timeline(program, [*spans, *_message_spans(check(program), busiest)])


def _work(records: Sequence[Record]) -> int:
    return sum(r.end_ns - r.start_ns - r.waited_ns for r in records)


def _collectives_entered(records: Sequence[Sequence[Record]]) -> dict[Action, int]:
    """When the last rank came to each collective."""
    entered: dict[Action, int] = {}
    for record in (r for of_rank in records for r in of_rank if r.action.kind.is_collective):
        entered[record.action] = max(entered.get(record.action, 0), record.start_ns)
    return entered


def _compute_span(lane: int, record: Record, entered: dict[Action, int]) -> Span:
    is_collective = record.action.kind.is_collective
    start = entered[record.action] if is_collective else record.start_ns + record.waited_ns
    return Span(lane, Stream.COMPUTE, min(start, record.end_ns), record.end_ns, record.action)


def _message_spans(flat: FlatProgram, records: Sequence[Sequence[Record]]) -> Iterator[Span]:
    """Both ends of every message. Ranks run their lane's list in order, so the n-th record is of its n-th action."""
    arrivals = [_arrivals(of_lane) for of_lane in records]
    for source, destination, send, receive in flat.compiled.messages:
        sent = records[source][send - flat.lane_begin[source]]
        place = receive - flat.lane_begin[destination]
        received = records[destination][place]
        end = max(sent.end_ns, arrivals[destination][place])
        yield Span(source, Stream.SEND, sent.start_ns, end, sent.action, destination)
        yield Span(destination, Stream.RECEIVE, sent.start_ns, end, received.action, source)


def _arrivals(records: Sequence[Record]) -> list[int]:
    """For each record when the next compute action went on, or 0 if it did not wait."""
    result, went_on = [], 0
    for record in reversed(records):
        if record.action.kind.is_compute:
            went_on = record.start_ns + record.waited_ns if record.waited_ns >= _SHORTEST_WAIT_NS else 0
        result.append(went_on)
    return result[::-1]
