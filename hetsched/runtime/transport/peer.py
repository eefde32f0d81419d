"""Rows put into the memory of GPUs of the same host: copy engines do, and for a peer waits a stream or a warp, no host.

Every process owns one arena of symmetric memory. In it lies, for each channel that brings it rows, an *inbox*: slots,
in which rows arrive where they are read, without being copied again. Which slot is the room of which microbatch, and
what has to have been given back before, follows from the program (hetsched.lower.rooms), so both ends know it before
the step begins. A wire has two counters that only grow: messages that arrived, beside the inbox, and rooms that were
given back, in the sender's arena. A link's stream waits at the sender until the room is free, puts rows into it and
counts the message. Whoever needs the rows waits for that count on its own stream, by a warp that looks at it, reads
them where they lie, and counts the room as given back after its last kernel that does.

A link's ranks take turns (``turn_of``): at any time its sources put to different destinations, so that no GPU's links
idle while others queue. The order does not matter to what can wait for what.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from hetsched.errors import JobError
from hetsched.kernels.put import counters, library
from hetsched.kernels.put.counters import Counter
from hetsched.kernels.put.message import Destination, put_message
from hetsched.layout.rank_share import Piece
from hetsched.lower.rooms import Rooms
from hetsched.parallel import symmetric
from hetsched.runtime.events import Event, EventPool, recorded_event
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport.arena import Inbox, Slots, WireEnd, padded, place
from hetsched.runtime.transport.links import Link


def turn_of(wire: Wire, link: Link) -> int:
    """When a wire has its turn among a link's: in one turn no rank is the source or the destination of two."""
    sources = sorted({w.source for w in link.wires})
    destinations = sorted({w.destination for w in link.wires})
    turns = max(len(sources), len(destinations))
    return (destinations.index(wire.destination) - sources.index(wire.source)) % turns


@dataclass(frozen=True)
class Neighbors:
    """Ranks of one host.

    Args:
        ranks: ascending.
        group: of torch.distributed's, in that order.
    """

    ranks: Sequence[int]
    group: dist.ProcessGroup

    @classmethod
    def of(cls, ranks: Sequence[int]) -> Neighbors:
        """Of these ranks; every rank of the job calls it, since it makes a group unless they are all."""
        assert dist.group.WORLD is not None
        is_all = len(ranks) == dist.get_world_size()
        return cls(ranks, dist.group.WORLD if is_all else dist.new_group(list(ranks), backend="gloo"))


def _reserve(neighbors: Neighbors) -> None:
    """Raises JobError, on every rank of the job: a rank shares memory with others already."""
    has_others = len(neighbors.ranks) > 1
    taken = torch.tensor([has_others and symmetric.is_reserved_for_others(neighbors.ranks)], dtype=torch.int32)
    dist.all_reduce(taken)
    if taken.item():
        raise JobError(
            'transport = "peer": context attention of an earlier engine shares memory within smaller groups, and torch '
            'lets a process share it with one set of ranks only; start new processes, or write transport = "nccl"'
        )
    if has_others:
        symmetric.reserve(neighbors.ranks)


class PeerCarrier:
    """One arena a process, one stream for each link that it sends on; see Carrier.

    Args:
        links: of the job; the ranks of each are on one host.
        device: this rank's GPU.
        neighbors: the ranks of this host; by default all of the job.

    Raises:
        JobError: see ``_reserve``.
    """

    def __init__(self, links: Sequence[Link], *, device: torch.device, neighbors: Neighbors | None = None) -> None:
        self._rank, self._device = dist.get_rank(), device
        self._neighbors = Neighbors.of(range(dist.get_world_size())) if neighbors is None else neighbors
        _reserve(self._neighbors)
        self._turns = {wire: turn_of(wire, link) for link in links for wire in link.wires}
        self._wires = list(self._turns)
        mine = [link for link in links if any(wire.source == self._rank for wire in link.wires)]
        self._streams = {link: torch.cuda.Stream(device) for link in mine}  # type: ignore[no-untyped-call]
        self._tickets = {link: Counter(torch.zeros(1, dtype=torch.int32, device=device)) for link in mine}
        self._nothing = torch.empty(0, dtype=torch.uint8, device=device)
        self._sources: dict[int, list[int]] = defaultdict(list)
        for wire in self._wires:
            if wire.destination == self._rank:
                self._sources[wire.tag].append(wire.source)
        self._events = EventPool(partial(recorded_event, device))
        self._slot_bytes: dict[int, int] = {}
        self._num_slots: dict[Inbox, int] = {}
        self._slots: dict[Inbox, Slots] = {}
        self._ends: dict[tuple[int, int, int], WireEnd] = {}
        self._arena: Tensor | None = None
        self._addresses = range(0)
        self._load_kernels()

    def _load_kernels(self) -> None:
        """Launch pack-and-put, which many short runs need, and the kernel that waits, while no stream waits."""
        rows = torch.zeros(2, 1, device=self._device)
        library.pack_and_put(rows, torch.tensor([[0, 0, 1, 1]]), [rows])
        counters.wait_for_counts([Counter(torch.zeros(1, dtype=torch.int32, device=self._device))], [0])
        torch.cuda.synchronize(self._device)

    def prepare(self, setup: StepSetup) -> None:
        """As in Carrier: make a larger arena if a room would not fit, or there are more than before."""
        small = {tag: n for tag, n in setup.largest_bytes.items() if n > self._slot_bytes.get(tag, 0)}
        few = {of: r.num_slots for of, r in setup.rooms.items() if r.num_slots > self._num_slots.get(of, 0)}
        if small or few or self._arena is None:
            # Half as much again, so that slowly growing messages do not bring a new arena with every step.
            self._slot_bytes |= {tag: padded(n + n // 2) for tag, n in small.items()}
            self._num_slots |= few
            self._make_arena()
        for of, slots in self._slots.items():
            slots.begin(setup.rooms.get(of, Rooms()))
        self._events.take_back()

    def _make_arena(self) -> None:
        self._wait_for_all()
        # What is mapped goes with this rank's own arena, so that has to stay until then.
        self._ends, self._slots, self._arena, self._addresses = {}, {}, None, range(0)
        places = place(self._wires, self._num_slots, self._slot_bytes)
        arena = symmetric_memory.empty(places.num_bytes, dtype=torch.uint8, device=self._device)
        arena.zero_()
        is_alone = len(self._neighbors.ranks) == 1
        handle = None if is_alone else symmetric_memory.rendezvous(arena, self._neighbors.group)
        torch.cuda.synchronize(self._device)
        self._arena, self._addresses = arena, range(arena.data_ptr(), arena.data_ptr() + arena.nbytes)
        self._wait_for_all()
        of_rank = {self._rank: arena}
        for wire in self._wires:
            if self._rank not in (wire.source, wire.destination):
                continue
            for rank in {wire.source, wire.destination} - of_rank.keys():
                assert handle is not None, "a wire leads to another host"
                place_of = self._neighbors.ranks.index(rank)
                of_rank[rank] = handle.get_buffer(place_of, (places.num_bytes,), torch.uint8)
            arrived, returned = places.arrived[wire], places.returned[wire]
            self._ends[wire.tag, wire.source, wire.destination] = WireEnd(
                Counter(of_rank[wire.destination][arrived : arrived + 4].view(torch.int32)),
                Counter(of_rank[wire.source][returned : returned + 4].view(torch.int32)),
                self._turns[wire],
            )
            inbox = wire.tag, wire.destination
            size, first = self._slot_bytes.get(wire.tag, 0), places.slots[inbox]
            starts = [first + number * size for number in range(self._num_slots.get(inbox, 0))]
            self._slots[inbox] = Slots([of_rank[wire.destination][start : start + size] for start in starts])

    def _wait_for_all(self) -> None:
        dist.all_reduce(torch.zeros(1))

    def room(self, transfer: Transfer, num_rows: int) -> Tensor | None:
        """As in Lender: a microbatch's rows in this rank's inbox; None where nobody of this host sends any."""
        slots = self._slots.get((transfer.channel.tag, self._rank))
        # Not detach(): that shares one count of changes with the whole arena, and autograd would take the arrival of
        # other rows for a change of these.
        return None if slots is None else slots.rows(transfer, num_rows).data

    def give_back(self, transfer: Transfer) -> None:
        """As in Lender; the current stream counts it at every source, if anybody waits for it."""
        tag = transfer.channel.tag
        slots = self._slots.get((tag, self._rank))
        if slots is None:
            return
        count = slots.rooms.returned[transfer.microbatch]
        if count in slots.rooms.awaited:
            for source in self._sources[tag]:
                counters.stream_write_value(self._ends[tag, source, self._rank].returned, slots.num_before + count)

    def lends(self, rows: Tensor) -> bool:
        """As in Lender."""
        return rows.data_ptr() in self._addresses

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> PeerSend:
        """As in Carrier."""
        tag, done = transfer.channel.tag, self._events.take()
        ends = [(self._ends[tag, self._rank, peer], peer, message) for peer, message in messages.items()]
        # The link's stream has done all of them when it has done the last.
        for end, peer, message in sorted(ends, key=lambda of: of[0].turn) if len(ends) > 1 else ends:
            end.num_messages += 1
            self._put(message, message.pieces, self._destination(end, peer, transfer), link, done)
        return PeerSend(done)

    def _destination(self, end: WireEnd, peer: int, transfer: Transfer) -> Destination:
        # A signal is counted, and has no rows that would need a room.
        if transfer.channel.is_signal:
            return Destination(self._nothing, end.arrived, end.num_messages)
        slots, m = self._slots[transfer.channel.tag, peer], transfer.microbatch
        return Destination(slots.room(m), end.arrived, end.num_messages, end.returned, slots.awaited(m))

    def _put(self, message: Message, pieces: tuple[Piece, ...], to: Destination, link: Link, done: Event) -> None:
        put_message(message.rows, pieces, to, ticket=self._tickets[link], stream=self._streams[link], done=done)

    def receive(self, link: Link, messages: Mapping[int, Message]) -> PeerReceive:
        """As in Carrier: the rows arrive in their room by themselves."""
        ends = [self._ends[link.wires[0].tag, peer, self._rank] for peer in messages]
        for end in ends:
            end.num_messages += 1
        return PeerReceive([end.arrived for end in ends], [end.num_messages for end in ends], self._events)


class PeerSend:
    """Messages that a link's stream was given.

    Args:
        done: is recorded behind them.
    """

    is_awaited = True

    def __init__(self, done: Event) -> None:
        self._done = done

    def is_completed(self) -> bool:
        return self._done.query()

    def seen(self, aside: Any, events: EventPool) -> Event:
        """As in Arrival: rows that were put have arrived."""
        return self._done


class PeerReceive:
    """Messages that arrive in their room.

    Args:
        arrived: the counters of the wires that they come by.
        counts: what each is once its message is there.
        events: where to take one that tells when they were there for whoever waited.
    """

    def __init__(self, arrived: Sequence[Counter], counts: Sequence[int], events: EventPool) -> None:
        self._arrived, self._counts, self._events = arrived, counts, events
        self._seen: Event | None = None

    def wait(self) -> PeerReceive:
        """As in Receive: the current stream goes on when they are there."""
        self._seen = self._events.take()
        counters.wait_for_counts(self._arrived, self._counts, seen=self._seen)
        return self

    def seen(self, aside: Any, events: EventPool) -> Event:
        """As in Arrival, once somebody has waited."""
        assert self._seen is not None
        return self._seen

    @property
    def is_awaited(self) -> bool:
        """As in Posted."""
        return self._seen is not None

    def is_completed(self) -> bool:
        """Whether they were there when somebody waited for them."""
        return self._seen is not None and self._seen.query()
