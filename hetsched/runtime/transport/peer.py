"""Rows put into the memory of GPUs of the same host: copy engines do, and no SM and no host waits for a peer.

Every process owns one arena of symmetric memory. A wire has a ring of slots in its receiver's arena and two counters
that only grow: parts of messages that arrived, beside the slots, and messages that were taken, in the sender's arena. A
link's stream waits for a slot to be free, puts rows into it from where they lie, part by part, and counts each part; at
the other end the link's stream waits for each count and copies the part's rows to where they belong while the next part
comes, and then counts the message as taken, which hands the slot back. Both ends cut a message by its size alone.

A link's ranks take turns (``turn_of``): at any time its sources put to different destinations, which take from them in
that order, so that no GPU's links idle while others queue. The order does not matter to what can wait for what: put k
waits for take k - NUM_SLOTS of the same wire, so once all messages before k are taken, every k can be put, and then
taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from hetsched.kernels.put import library
from hetsched.kernels.put.parts import Slot, put_parts, take_parts
from hetsched.runtime.exchange import Message, Wire
from hetsched.runtime.transport.links import Link

NUM_SLOTS = 4
"""Messages of a wire that may have been sent and not taken; one is enough to go on."""
PART_BYTES = 32 << 20
"""The most bytes of a part: each costs the link about 5 us, and a message ends with the copy of its last one."""
# Counters lie in cache lines of their own; slots are aligned to the widest access.
_LINE = 128


@dataclass(frozen=True, slots=True)
class Place:
    """Where a wire lives: byte offsets of slots and arrival counter at its receiver, of the credit at its sender."""

    slots: int
    arrived: int
    taken: int


def place_wires(wires: Sequence[Wire], slot_bytes: Mapping[int, int]) -> tuple[dict[Wire, Place], int]:
    """Places for all wires, and the bytes of an arena that is large enough for every rank.

    Args:
        wires: of the job, in the same order on every rank.
        slot_bytes: of each channel, by tag; a multiple of the cache line.
    """
    used: dict[int, int] = defaultdict(int)

    def take(rank: int, num_bytes: int) -> int:
        offset = used[rank]
        used[rank] += _lines(num_bytes)
        return offset

    places = {
        wire: Place(
            arrived=take(wire.destination, 4),
            taken=take(wire.source, 4),
            slots=take(wire.destination, NUM_SLOTS * slot_bytes[wire.tag]),
        )
        for wire in wires
    }
    return places, max(used.values(), default=_LINE)


def _lines(num_bytes: int) -> int:
    return -(-num_bytes // _LINE) * _LINE


def cut(num_rows: int, row_bytes: int) -> list[int]:
    """The rows up to which each part of a message goes: as few parts as may be, of equal size."""
    num_parts = max(1, min(num_rows, -(-num_rows * row_bytes // PART_BYTES)))
    return [num_rows * (part + 1) // num_parts for part in range(num_parts)]


def turn_of(wire: Wire, link: Link) -> int:
    """When a wire has its turn among a link's: in one turn no rank is the source or the destination of two."""
    sources = sorted({w.source for w in link.wires})
    destinations = sorted({w.destination for w in link.wires})
    turns = max(len(sources), len(destinations))
    return (destinations.index(wire.destination) - sources.index(wire.source)) % turns


class WireEnd:
    """A wire's slots and counters as one of its ranks sees them, and how much it was given there.

    Args:
        place: where it lives.
        turn: among the wires of its link.
        slot_bytes: of one message.
        at_receiver, at_sender: the arenas of its ends.
    """

    def __init__(self, place: Place, *, turn: int, slot_bytes: int, at_receiver: Tensor, at_sender: Tensor) -> None:
        self.turn, self.num_messages, self._num_parts = turn, 0, 0
        starts = [place.slots + number * slot_bytes for number in range(NUM_SLOTS)]
        self._slots = [at_receiver[start : start + slot_bytes] for start in starts]
        self._arrived = at_receiver[place.arrived : place.arrived + 4].view(torch.int32)
        self.taken = at_sender[place.taken : place.taken + 4].view(torch.int32)

    def next_slot(self, message: Message) -> Slot:
        """The slot of the next message, which this is."""
        rows = message.rows
        num_rows, row_bytes = message.num_rows, rows.shape[1] * rows.element_size()
        memory = self._slots[self.num_messages % NUM_SLOTS][: num_rows * row_bytes]
        ends, first = cut(num_rows, row_bytes), self._num_parts + 1
        self.num_messages, self._num_parts = self.num_messages + 1, self._num_parts + len(ends)
        return Slot(memory.view(rows.dtype).view(num_rows, rows.shape[1]), ends, self._arrived, first)


class PeerCarrier:
    """One arena a process, one stream a link; see Carrier.

    Args:
        links: of the job, all of whose ranks are on this host.
        device: this rank's GPU.
    """

    def __init__(self, links: Sequence[Link], *, device: torch.device) -> None:
        self._rank, self._device = dist.get_rank(), device
        self._turns = {wire: turn_of(wire, link) for link in links for wire in link.wires}
        self._wires = list(self._turns)
        mine = [link for link in links if self._rank in link.ranks]
        self._streams = {link: torch.cuda.Stream(device) for link in mine}  # type: ignore[no-untyped-call]
        self._tickets = {link: torch.zeros(1, dtype=torch.int32, device=device) for link in mine}
        self._slot_bytes: dict[int, int] = {wire.tag: 0 for wire in self._wires}
        self._ends: dict[tuple[int, int, int], WireEnd] = {}
        self._arena: Tensor | None = None
        self._load_kernel()

    def _load_kernel(self) -> None:
        """Launch pack-and-put, which many short runs need, once while no stream waits for a peer."""
        rows = torch.zeros(2, 1, device=self._device)
        library.pack_and_put(rows, torch.tensor([[0, 0, 1, 1]]), [rows])
        torch.cuda.synchronize(self._device)

    def prepare(self, largest_bytes: Mapping[int, int]) -> None:
        """As in Carrier: make a larger arena if a message would not fit its slot."""
        needed = {tag: largest_bytes.get(tag, 0) for tag in self._slot_bytes}
        if self._ends and all(num_bytes <= self._slot_bytes[tag] for tag, num_bytes in needed.items()):
            return
        # Half as much again, so that slowly growing messages do not bring a new arena with every step.
        self._slot_bytes |= {t: _lines(n + n // 2) for t, n in needed.items() if n > self._slot_bytes[t]}
        self._wait_for_all()
        # What is mapped goes with this rank's own arena, so that has to stay until then.
        self._ends, self._arena = {}, None
        places, arena_bytes = place_wires(self._wires, self._slot_bytes)
        arena = symmetric_memory.empty(arena_bytes, dtype=torch.uint8, device=self._device)
        arena.zero_()
        assert dist.group.WORLD is not None
        handle = symmetric_memory.rendezvous(arena, dist.group.WORLD)
        torch.cuda.synchronize(self._device)
        self._arena = arena
        self._wait_for_all()
        for wire, place in places.items():
            if self._rank in (wire.source, wire.destination):
                ends = [
                    arena if rank == self._rank else handle.get_buffer(rank, (arena_bytes,), torch.uint8)
                    for rank in (wire.destination, wire.source)
                ]
                self._ends[wire.tag, wire.source, wire.destination] = WireEnd(
                    place,
                    turn=self._turns[wire],
                    slot_bytes=self._slot_bytes[wire.tag],
                    at_receiver=ends[0],
                    at_sender=ends[1],
                )

    def _wait_for_all(self) -> None:
        dist.all_reduce(torch.zeros(1))

    def send(self, link: Link, messages: Mapping[int, Message]) -> StreamWork:
        """As in Carrier."""
        stream = self._streams[link]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for end, message in self._in_turn(link, messages, is_send=True):
                self._put(end, message, self._tickets[link])
        return StreamWork(stream)

    def receive(self, link: Link, messages: Mapping[int, Message]) -> StreamWork:
        """As in Carrier."""
        stream = self._streams[link]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            taken = [(end, self._take(end, m)) for end, m in self._in_turn(link, messages, is_send=False)]
            # Who needs the rows does not wait for the slots to be handed back.
            ready = stream.record_event()
            for end, slot in taken:
                self._hand_back(end, slot)
        return StreamWork(stream, ready)

    def _in_turn(
        self, link: Link, messages: Mapping[int, Message], *, is_send: bool
    ) -> Sequence[tuple[WireEnd, Message]]:
        tag, rank = link.wires[0].tag, self._rank
        ends = ((self._ends[tag, *((rank, peer) if is_send else (peer, rank))], m) for peer, m in messages.items())
        return sorted(ends, key=lambda of: of[0].turn)

    def _put(self, end: WireEnd, message: Message, ticket: Tensor) -> None:
        self._await_credit(end)
        put_parts(message.rows, message.runs, end.next_slot(message), ticket=ticket)

    def _await_credit(self, end: WireEnd) -> None:
        if end.num_messages >= NUM_SLOTS:
            library.stream_wait_value(end.taken, end.num_messages - NUM_SLOTS + 1)

    def _take(self, end: WireEnd, message: Message) -> Slot:
        slot = end.next_slot(message)
        take_parts(slot, message.rows, message.runs)
        return slot

    def _hand_back(self, end: WireEnd, slot: Slot) -> None:
        library.stream_write_value(end.taken, end.num_messages)


class StreamWork:
    """What was enqueued on a link's stream so far.

    Args:
        stream: the link's.
        ready: what to wait for, where that is not all of it.
    """

    def __init__(self, stream: torch.cuda.Stream, ready: torch.cuda.Event | None = None) -> None:
        self._done = stream.record_event()
        self._ready = ready or self._done

    def is_completed(self) -> bool:
        return bool(self._done.query())

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self._ready)

    @property
    def arrival(self) -> StreamWork:
        """As in Work: the link's stream has put the rows in their places."""
        return self
