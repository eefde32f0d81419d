"""What the ranks recorded of a step, as a timeline of its program: the same form that the simulator gives.

Waiting is idle time: a compute action's span starts when its inputs had arrived, a collective's when the last of its
ranks came to it, and what an action waited for later, inside its work, is a figure of its span. Where nobody saw a
message arrive (on CPUs), of those that an action waited for the last one posted is said to be on its way until the
action went on, and all others no longer than their SEND.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hetsched.check.flat import FlatProgram
from hetsched.check.validate import check
from hetsched.runtime.measure.recorder import Record
from hetsched.schedule.action import Action
from hetsched.schedule.program import Program
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline

SHORTEST_WAIT_NS = 50_000
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
        return sum(record.work_ns for record in self.records)


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
        start = min(entered.get(action, trace.began_ns + record.ready_ns), end)
        yield Span(trace.lane, Stream.COMPUTE, start, end, action, waited_ns=min(record.inner_wait_ns, end - start))


class _Message(NamedTuple):
    """One message: its two records, and what used it (a lane and a place in its list)."""

    source: int
    sent: Record
    posted_ns: int
    received: Record
    user: tuple[int, int]


def _message_spans(flat: FlatProgram, traces: Sequence[RankTrace]) -> Iterator[Span]:
    """Both ends of every message."""
    messages = list(_messages(flat, traces))
    last_of = {message.user: message for message in sorted(messages, key=lambda message: message.posted_ns)}
    for message in messages:
        lane, place = message.user
        end = message.posted_ns
        if message.sent.arrived_ns is not None:
            end = max(end, traces[message.source].began_ns + message.sent.arrived_ns)
        elif last_of[message.user] is message:
            end = max(end, _went_on(traces[lane], place))
        start = message.posted_ns - (message.sent.end_ns - message.sent.start_ns)
        yield Span(message.source, Stream.SEND, start, end, message.sent.action, lane)
        yield Span(lane, Stream.RECEIVE, start, end, message.received.action, message.source)


def _messages(flat: FlatProgram, traces: Sequence[RankTrace]) -> Iterator[_Message]:
    """The messages of the step. Ranks run their lane's list in order, so the n-th record is of its n-th action."""
    users = [_users(trace) for trace in traces]
    for source, lane, send, receive in flat.compiled.messages:
        sent, place = traces[source].records[send - flat.lane_begin[source]], receive - flat.lane_begin[lane]
        posted = traces[source].began_ns + sent.end_ns
        yield _Message(source, sent, posted, traces[lane].records[place], (lane, users[lane][place]))


def _users(trace: RankTrace) -> list[int]:
    """For each record the place of the next compute action."""
    result, user = [], len(trace.records)
    for place in range(len(trace.records) - 1, -1, -1):
        if trace.records[place].action.kind.is_compute:
            user = place
        result.append(user)
    return result[::-1]


def _went_on(trace: RankTrace, place: int) -> int:
    """When an action stopped waiting and began its work; 0 if it did not wait."""
    if place == len(trace.records):
        return 0
    record = trace.records[place]
    return trace.began_ns + record.ready_ns if record.ready_ns - record.start_ns >= SHORTEST_WAIT_NS else 0
