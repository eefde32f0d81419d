"""Costs taken from measured steps, to predict others with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from hetsched.schedule.action import Kind
from hetsched.schedule.table import ActionTable, Pattern
from hetsched.sim.costs import Costs, Link
from hetsched.sim.timeline import Span, Stream, Timeline


def measured_costs(timelines: Iterable[Timeline], *, by_microbatch: bool = False) -> Costs:
    """What actions and messages cost on average in steps that ran.

    What an action waited for is no cost of its own. A message costs the shortest time that one of its edge was under
    way, as a latency, whatever its size: what is measured of others holds waiting for their turn, for a receiver, or
    for somebody to look at them, which the simulator finds by itself. Those without rows take no time and say nothing.

    Args:
        timelines: measured, of programs of one plan.
        by_microbatch: tell microbatches apart, for predictions of the very batch that was measured; otherwise a
            cost is the mean over the microbatches of a stage. Lanes are told apart, too; for one on which a stage
            was not measured the mean over lanes is stated.
    """
    durations: dict[Pattern, list[int]] = defaultdict(list)
    messages: dict[str, list[int]] = defaultdict(list)
    for timeline in timelines:
        for span in timeline.spans:
            if span.stream is Stream.RECEIVE:
                messages[span.action.module].append(span.duration_ns)
            elif span.stream is Stream.COMPUTE:
                for exact, share in _shares(span):
                    pattern = exact if by_microbatch else exact._replace(microbatch=None)
                    durations[pattern].append(share)
                    durations[pattern._replace(lane=None)].append(share)
    table = {pattern: round(sum(of) / len(of)) for pattern, of in durations.items()}
    links = {name: Link(latency_ns=min(filter(None, of), default=0)) for name, of in messages.items()}
    return Costs(ActionTable(table), links=links)


def _shares(span: Span) -> Iterator[tuple[Pattern, int]]:
    """The work of a span, in equal parts for each microbatch of its window."""
    action = span.action.parts[0] if span.action.parts else span.action
    microbatches = action.microbatches or (None,)
    for m in microbatches:
        kind = Kind(span.action.kind)
        yield Pattern(kind, action.module, action.stage, m, span.lane), span.work_ns // len(microbatches)
