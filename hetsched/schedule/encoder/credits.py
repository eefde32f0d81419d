"""Credits: what keeps an encoder within its limit of microbatches in flight, whatever the timing of the lanes.

A program fixes the order of each lane, not how far one lane runs ahead of another. So a microbatch that would be one
too many waits for another to give up its state on all of its lanes: those *signal*, and who waits counts their signals.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program

ShareKey = tuple[str, int, int]
"""Encoder, microbatch and lane: a lane's share of a microbatch."""


@dataclass(slots=True)
class HeldState:
    """A microbatch's encoder state: from when to when it is held, and on which lanes.

    It counts from the start of the first forward to the end of the last backward, or of the last forward where there
    is no backward.
    """

    start_ns: int
    end_ns: int
    lanes: set[int]


Ran = tuple[int, Action, int, int]
"""A lane, an action, and when it started and ended."""


@dataclass(frozen=True, slots=True)
class Credit:
    """The right of microbatch ``opened`` to open state, given by ``closed`` once that has given up its own.

    Args:
        module: the encoder.
        closed, closing_lanes: the microbatch that gives it, with its backward on each of these lanes.
        opened, opening_lanes: the microbatch that waits for it, before its forward on each of these lanes.
    """

    module: str
    closed: int
    closing_lanes: tuple[int, ...]
    opened: int
    opening_lanes: tuple[int, ...]


@dataclass(frozen=True)
class Signals:
    """Credits as the lanes give and await them.

    Args:
        given: share -> the lanes that its backward signals to.
        awaited: share -> for each lane how often it must have signaled to this one before its forward.
    """

    given: Mapping[ShareKey, tuple[int, ...]] = field(default_factory=dict)
    awaited: Mapping[ShareKey, Mapping[int, int]] = field(default_factory=dict)


def held_state(ran: Iterable[Ran], module: str, *, recomputed: Collection[int] = ()) -> dict[int, HeldState]:
    """The state that an encoder holds, by microbatch.

    Args:
        ran: what the lanes did, of all modules.
        module: the encoder.
        recomputed: microbatches that keep only their output, and hold none.
    """
    held: dict[int, HeldState] = {}
    for lane, action, start_ns, end_ns in ran:
        if action.module != module or action.kind not in (Kind.F, Kind.B):
            continue
        for m in set(action.microbatches).difference(recomputed):
            of = held.setdefault(m, HeldState(start_ns, end_ns, set()))
            of.start_ns, of.end_ns = min(of.start_ns, start_ns), max(of.end_ns, end_ns)
            of.lanes.add(lane)
    return held


def state_credits(held: Mapping[int, HeldState], module: str, *, in_flight: int) -> list[Credit]:
    """The credits with which no timing of the lanes holds more than ``in_flight`` microbatches.

    The first ``in_flight`` microbatches open freely, every other takes the place of the earliest that has closed. In
    the times given nothing waits for one, so they add no circle to the order of the actions.

    Args:
        held: of ``held_state``, within the limit.
        module: the encoder; it has a backward.
        in_flight: most microbatches whose state is held at once, over all lanes.
    """
    closing: list[tuple[int, int]] = []
    credits = []
    for place, m in enumerate(sorted(held, key=lambda m: (held[m].start_ns, m))):
        if place >= in_flight:
            end_ns, closed = heapq.heappop(closing)
            assert end_ns <= held[m].start_ns, "the placement is beyond the limit"
            credits.append(Credit(module, closed, tuple(sorted(held[closed].lanes)), m, tuple(sorted(held[m].lanes))))
        heapq.heappush(closing, (held[m].end_ns, m))
    return credits


def signals_of(program: Program, credits: Iterable[Credit]) -> Signals:
    """The credits as signals. Those from one lane to another are counted in the order in which it gives them."""
    by_closed = {(credit.module, credit.closed): credit for credit in credits}
    given: dict[ShareKey, tuple[int, ...]] = {}
    awaited: dict[ShareKey, dict[int, int]] = defaultdict(dict)
    num_given: dict[tuple[str, int, int], int] = defaultdict(int)
    for lane, actions in enumerate(program.lanes):
        for action in actions:
            for m in action.microbatches if action.kind is Kind.B else ():
                credit = by_closed.get((action.module, m))
                if credit is None or lane not in credit.closing_lanes:
                    continue
                given[action.module, m, lane] = credit.opening_lanes
                for opening in credit.opening_lanes:
                    num_given[action.module, lane, opening] += 1
                    awaited[action.module, credit.opened, opening][lane] = num_given[action.module, lane, opening]
    return Signals(given, dict(awaited))
