"""What each lane holds over time, for a curve."""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.check.memory import memory_changes
from hetsched.schedule.action import Kind
from hetsched.schedule.table import ActionTable, Pattern
from hetsched.sim.places import places_of
from hetsched.sim.timeline import Stream, Timeline

Curve = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Curves of (time, what is held from then on), one a lane.

    Args:
        unit: ``bytes`` where the timeline knows them, otherwise ``microbatches``: stages' states, of all modules,
            between the start of a forward and the end of its backward.
        curves: by lane.
    """

    unit: str
    curves: tuple[Curve, ...]


def memory_of(timeline: Timeline) -> Memory:
    """The memory curves of a timeline."""
    if timeline.memory:
        return Memory("bytes", timeline.memory)
    names = [module.name for module in timeline.program.topology.modules]
    one_each = ActionTable({Pattern(Kind.F, name): 1 for name in names})
    lanes = range(len(timeline.program.lanes))
    return Memory("microbatches", tuple(_curve(timeline, lane, one_each) for lane in lanes))


def _curve(timeline: Timeline, lane: int, held: ActionTable) -> Curve:
    computed = timeline.stream(lane, Stream.COMPUTE)
    span_at = dict(zip(places_of(timeline.program.lanes[lane], computed), computed, strict=True))
    points = {0: 0}
    for position, acquired, released in memory_changes(timeline.program, lane, held):
        span = span_at.get(position)
        if span is not None:
            for time, change in ((span.start_ns, acquired), (span.end_ns, -released)):
                points[time] = points.get(time, 0) + change
    total = 0
    curve: list[tuple[int, int]] = []
    for time, change in sorted(points.items()):
        total += change
        if change or not curve:
            curve.append((time, total))
    return tuple(curve)
