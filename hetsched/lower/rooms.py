"""Where rows that arrive on a lane may lie, and until when: slots given out by the order of the lane's list.

A transport that puts rows straight into a receiver's memory needs to know when that memory is free. A *room* holds the
rows of one microbatch of one channel. It is taken by the RECV in the lane's list and given back after the last action
that may read the rows: for activations the backward, or the weight gradient that was deferred from it; gradients are
copied when the backward takes them. So the slots of a channel are as many as the list ever has in use at once, and
each message knows before the step begins in which slot it lies and which earlier one must have been given back.
Nobody decides anything while the step runs, and memory is never waited for that the list gives back only later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hetsched.lower.lifetime import last_reads
from hetsched.schedule.action import Action, Kind


class Room(NamedTuple):
    """Where the rows of a microbatch lie.

    Args:
        slot: of the channel's.
        after: how many rooms of the channel have been given back in the step when this one is free.
    """

    slot: int
    after: int


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms of one channel on one lane in a step.

    Args:
        num_slots: as many as are in use at once.
        of: by microbatch.
        returned: by microbatch, how many have been given back once its own has.
        awaited: of those counts the ones that somebody waits for: a later message, or the next step.
    """

    num_slots: int = 0
    of: Mapping[int, Room] = field(default_factory=dict)
    returned: Mapping[int, int] = field(default_factory=dict)
    awaited: frozenset[int] = frozenset()

    @classmethod
    def by(cls, events: Iterable[tuple[int, bool]]) -> Rooms:
        """Rooms taken and given back in this order.

        Args:
            events: microbatch, and whether its room is given back (otherwise it is taken).
        """
        free: list[int] = []
        emptied: dict[int, int] = {}
        of: dict[int, Room] = {}
        returned: dict[int, int] = {}
        for microbatch, is_end in events:
            if is_end:
                slot = of[microbatch].slot
                returned[microbatch] = emptied[slot] = len(returned) + 1
                free.append(slot)
            else:
                # The one that was given back first, so that whoever fills it waits least.
                slot = free.pop(0) if free else len(emptied)
                of[microbatch] = Room(slot, emptied.setdefault(slot, 0))
        awaited = frozenset(room.after for room in of.values()) - {0} | {len(returned)}
        return cls(len(emptied), of, returned, awaited)


class Arrival(NamedTuple):
    """The rows of one microbatch that a lane receives, as its RECV names them."""

    edge: str
    stage: int
    kind: Kind
    microbatch: int


@dataclass(frozen=True, slots=True)
class LaneRooms:
    """The rooms of one lane in a step.

    Args:
        rooms: by edge, stage and kind of the RECV.
        ends: what is given back after the action at a place of the lane's list.
    """

    rooms: Mapping[tuple[str, int, Kind], Rooms]
    ends: Mapping[int, Sequence[Arrival]]

    @classmethod
    def of(cls, actions: Sequence[Action]) -> LaneRooms:
        """The rooms of a lane's list."""
        starts = {arrival: place for place, action in enumerate(actions) for arrival in _arrivals(action)}
        reads = last_reads(actions)
        ends: dict[int, list[Arrival]] = defaultdict(list)
        for arrival in starts:
            ends[reads[_reader(arrival)]].append(arrival)
        events: dict[tuple[str, int, Kind], list[tuple[int, bool]]] = defaultdict(list)
        for place, action in enumerate(actions):
            for arrival in _arrivals(action):
                events[arrival[:3]].append((arrival.microbatch, False))
            for arrival in ends.get(place, ()):
                events[arrival[:3]].append((arrival.microbatch, True))
        return cls({key: Rooms.by(of) for key, of in events.items()}, dict(ends))


def _arrivals(action: Action) -> Iterator[Arrival]:
    if action.kind in (Kind.RECV_F, Kind.RECV_B):
        for m in action.microbatches:
            yield Arrival(action.module, action.stage, action.kind, m)


def _reader(arrival: Arrival) -> tuple[str, int, int, bool]:
    """The stage that reads what arrives, as ``last_reads`` names it."""
    is_gradient = arrival.kind is Kind.RECV_B
    module = arrival.edge.split("->")[0 if is_gradient else -1]
    return module, arrival.stage, arrival.microbatch, is_gradient
