"""Where the idle time of a timeline comes from.

Idle time of a lane is the makespan minus the time in which its compute engine works: in an action, and not waiting
there. It has five causes, which add up to it:

- **warmup**: before the lane's first action.
- **cooldown**: after its last action; all of the makespan for a lane without actions.
- **transfer**: between actions, while a message was on its way to this lane that had arrived when the lane went on; and
  within actions, while they waited for messages of their own, such as the keys of context-parallel attention.
- **dependency**: the rest of the time between actions: another lane has yet to make what this one needs.
- **imbalance**: the work that the busiest lane has more than this one. Any order leaves the lane idle for so
  long, so it is not the order's fault; it is taken out of dependency first, then cooldown, warmup and transfer.

Needs nothing but spans, so that simulated and measured timelines are compared by the same rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from operator import attrgetter

from hetsched.sim.timeline import Span, Stream, Timeline

Interval = tuple[int, int]
"""Start and end, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Bubble:
    """Idle nanoseconds by cause; see the module."""

    warmup: int = 0
    cooldown: int = 0
    dependency: int = 0
    transfer: int = 0
    imbalance: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_cause().values())

    def by_cause(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: Bubble) -> Bubble:
        mine, theirs = self.by_cause(), other.by_cause()
        return Bubble(**{cause: mine[cause] + theirs[cause] for cause in mine})


def bubbles(timeline: Timeline) -> tuple[Bubble, ...]:
    """The bubble of each lane."""
    lanes = range(len(timeline.program.lanes))
    computed = [timeline.stream(lane, Stream.COMPUTE) for lane in lanes]
    busy = [_union((span.start_ns, span.end_ns) for span in spans) for spans in computed]
    waited = [sum(span.waited_ns for span in spans) for spans in computed]
    work = [_length(busy[lane]) - waited[lane] for lane in lanes]
    return tuple(
        _level(_of_lane(timeline, lane, busy[lane], waited[lane]), imbalance=max(work) - work[lane]) for lane in lanes
    )


def total_bubble(timeline: Timeline) -> Bubble:
    """The bubbles of all lanes added up."""
    return reduce(Bubble.__add__, bubbles(timeline), Bubble())


def bubble_fraction(timeline: Timeline) -> float:
    """Idle time of all lanes over lanes times makespan."""
    return share_of_lanes(timeline, total_bubble(timeline))


def share_of_lanes(timeline: Timeline, bubble: Bubble) -> float:
    """A bubble of all lanes over lanes times makespan."""
    total = timeline.makespan_ns * len(timeline.program.lanes)
    return bubble.total / total if total else 0.0


def _of_lane(timeline: Timeline, lane: int, busy: Sequence[Interval], waited: int) -> Bubble:
    """Idle time by place: before, after and between the lane's actions, and in them."""
    if not busy:
        return Bubble(cooldown=timeline.makespan_ns)
    gaps = [(end, start) for (_, end), (start, _) in pairwise(busy) if end < start]
    messages = sorted(timeline.stream(lane, Stream.RECEIVE), key=attrgetter("end_ns"))
    arrivals = [message.end_ns for message in messages]
    transfer = sum(_awaited(messages, arrivals, gap) for gap in gaps)
    between = sum(end - start for start, end in gaps)
    return Bubble(
        warmup=busy[0][0],
        cooldown=timeline.makespan_ns - busy[-1][1],
        dependency=between - transfer,
        transfer=transfer + waited,
    )


def _awaited(messages: Sequence[Span], arrivals: Sequence[int], gap: Interval) -> int:
    """How long in the gap messages, sorted by arrival, were on their way that had arrived at its end."""
    start, end = gap
    in_gap = messages[bisect_right(arrivals, start) : bisect_right(arrivals, end)]
    return _length(_union((max(start, m.start_ns), m.end_ns) for m in in_gap if m.start_ns < m.end_ns))


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals that cover the same, ascending."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((start, end))
    return result


def _length(intervals: Iterable[Interval]) -> int:
    return sum(end - start for start, end in intervals)


def _level(bubble: Bubble, *, imbalance: int) -> Bubble:
    """The bubble with the imbalance taken out of the other causes."""
    left, rest = imbalance, bubble.by_cause()
    for cause in ("dependency", "cooldown", "warmup", "transfer"):
        taken = min(left, rest[cause])
        rest[cause] -= taken
        left -= taken
    return Bubble(**rest | {"imbalance": imbalance - left})
