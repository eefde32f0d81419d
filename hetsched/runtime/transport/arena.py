"""The arenas of peer memory: what lies where in each, and whose room is where in a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hetsched.kernels.put.counters import Counter
from hetsched.lower.rooms import Rooms
from hetsched.runtime.exchange import Transfer, Wire

# Counters lie in cache lines of their own; slots are aligned to the widest access.
_LINE = 128
_MOST_VIEWS = 1024
Inbox = tuple[int, int]
"""A channel's tag and the rank that receives."""


@dataclass(frozen=True, slots=True)
class Places:
    """Byte offsets in the arenas.

    Args:
        slots: of each inbox, at its rank.
        arrived: of each wire, at its destination.
        returned: of each wire, at its source.
        num_bytes: of an arena that is large enough for every rank.
    """

    slots: Mapping[Inbox, int]
    arrived: Mapping[Wire, int]
    returned: Mapping[Wire, int]
    num_bytes: int


def place(wires: Sequence[Wire], num_slots: Mapping[Inbox, int], slot_bytes: Mapping[int, int]) -> Places:
    """Places for all that the arenas hold.

    Args:
        wires: of the job, in the same order on every rank.
        num_slots: of each inbox; none where it is missing.
        slot_bytes: of each channel, by tag; a multiple of the cache line.
    """
    used: dict[int, int] = defaultdict(int)

    def take(rank: int, num_bytes: int) -> int:
        offset = used[rank]
        used[rank] += padded(num_bytes)
        return offset

    arrived = {wire: take(wire.destination, 4) for wire in wires}
    returned = {wire: take(wire.source, 4) for wire in wires}
    slots: dict[Inbox, int] = {}
    for wire in wires:
        inbox = wire.tag, wire.destination
        if inbox not in slots:
            slots[inbox] = take(wire.destination, num_slots.get(inbox, 0) * slot_bytes.get(wire.tag, 0))
    return Places(slots, arrived, returned, max(used.values(), default=_LINE))


def padded(num_bytes: int) -> int:
    """To whole cache lines."""
    return -(-num_bytes // _LINE) * _LINE


@dataclass(slots=True)
class Slots:
    """An inbox as one rank sees it, and whose room is where in this step.

    Args:
        memory: of each slot, bytes.
        rooms: of this step.
        num_before: rooms that were given back in earlier steps.
    """

    memory: Sequence[Tensor]
    rooms: Rooms = field(default_factory=Rooms)
    num_before: int = 0
    _rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def begin(self, rooms: Rooms) -> None:
        """A step begins, and the last one is over: all of its rooms are given back."""
        self.num_before += len(self.rooms.returned)
        self.rooms = rooms

    def room(self, microbatch: int) -> Tensor:
        return self.memory[self.rooms.of[microbatch].slot]

    def rows(self, transfer: Transfer, num_rows: int) -> Tensor:
        """The first of a room's rows, ``[num_rows, hidden]`` of the channel."""
        # A view takes the host as long as a launch, and microbatches are often alike.
        key, channel = (self.rooms.of[transfer.microbatch].slot, num_rows), transfer.channel
        if key not in self._rows:
            if len(self._rows) == _MOST_VIEWS:
                self._rows.clear()
            num_bytes = num_rows * channel.row_bytes
            self._rows[key] = self.memory[key[0]][:num_bytes].view(channel.dtype).view(num_rows, channel.hidden)
        return self._rows[key]

    def awaited(self, microbatch: int) -> int:
        """How many rooms have been given back when this one is free."""
        return self.num_before + self.rooms.of[microbatch].after


@dataclass(slots=True)
class WireEnd:
    """A wire's counters as one of its ranks sees them, and its messages so far.

    Args:
        arrived, returned: the counters.
        turn: among the wires of its link.
        num_messages: so far, of all steps.
    """

    arrived: Counter
    returned: Counter
    turn: int
    num_messages: int = 0
