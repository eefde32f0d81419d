"""The peer transport's rooms and counters, all ranks in one process: whatever comes first, every row is read right.

Memory is the host's, and what a stream would wait for is looked at instead: an operation that would wait is not yet
done, another one is, in any order. The same on GPUs is in tests/gpu/test_peer.py.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.layout.rank_share import joined, outgoing
from hetsched.lower.rooms import Rooms
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport import by_host, peer
from hetsched.runtime.transport.arena import Slots
from hetsched.runtime.transport.by_host import ByHostCarrier
from hetsched.runtime.transport.links import Link, make_links
from hetsched.runtime.transport.peer import PeerCarrier
from tests.dist.peer_cases import CHANNELS, MAX_ROWS, MOST_IN_USE, PER_STEP, Sent, events_of, pieces_of

Inbox = tuple[int, int]


class WouldWaitError(Exception):
    """A stream would wait here."""


class Host:
    """What the carriers of several ranks take for CUDA and torch.distributed, each on a thread of its own."""

    def __init__(self, num_ranks: int) -> None:
        self.of_thread, self.arenas = threading.local(), [torch.empty(0)] * num_ranks
        self.meeting = threading.Barrier(num_ranks)
        self.world = SimpleNamespace(ranks=range(num_ranks))
        self.num_events = 0

    def make_event(self, device: torch.device) -> Any:
        self.num_events += 1
        return SimpleNamespace(query=lambda: True, record=lambda *stream: None)

    def empty(self, num_bytes: int, **_: Any) -> Tensor:
        arena = torch.full((num_bytes,), 255, dtype=torch.uint8)
        self.arenas[self.of_thread.rank] = arena
        return arena

    def rendezvous(self, arena: Tensor, group: Any) -> Any:
        return SimpleNamespace(get_buffer=lambda place, shape, dtype: self.arenas[group.ranks[place]])

    @contextmanager
    def patched(self) -> Iterator[None]:
        cuda = SimpleNamespace(Stream=lambda device: object(), synchronize=lambda device: None)
        with ExitStack() as patches:
            for name, value in {
                "torch.cuda": cuda,
                "recorded_event": self.make_event,
                "dist.get_rank": lambda: self.of_thread.rank,
                "dist.get_world_size": lambda: len(self.arenas),
                "dist.new_group": lambda ranks, backend: SimpleNamespace(ranks=ranks),
                "dist.all_reduce": lambda tensor: self.meeting.wait(),
                "dist.group": SimpleNamespace(WORLD=self.world),
                "symmetric_memory": self,
                "symmetric": SimpleNamespace(is_reserved_for_others=lambda ranks: False, reserve=lambda ranks: None),
                "put_message": put,
                "library.pack_and_put": lambda *args: None,
                "Counter": lambda tensor: SimpleNamespace(tensor=tensor),
                "counters.wait_for_counts": await_counts,
                "counters.stream_write_value": lambda counter, value: counter.tensor.fill_(value),
            }.items():
                patches.enter_context(mock.patch(f"{peer.__name__}.{name}", value))
            yield


def await_counts(counters: Sequence[Any], values: Sequence[int], *, seen: Any = None) -> None:
    if any(int(counter.tensor) < value for counter, value in zip(counters, values, strict=True)):
        raise WouldWaitError


def put(rows: Tensor, pieces: Sequence[tuple[int, int, int]], to: Any, **_: Any) -> None:
    if to.returned is not None:
        await_counts([to.returned], [to.awaited])
    row_bytes = rows.shape[1] * rows.element_size()
    for row, to_row, count in pieces:
        room = to.room[to_row * row_bytes : (to_row + count) * row_bytes].view(rows.dtype)
        room.copy_(rows[row : row + count].flatten())
    to.arrived.tensor.fill_(to.number)


class Network:
    """One rank's end of what carries rows between hosts: in order, to their places as soon as they can be there.

    Args:
        sent: by all ranks, by wire.
    """

    def __init__(self, sent: dict[tuple[int, int, int], list[Tensor]]) -> None:
        self._sent, self._rank = sent, dist.get_rank()
        self._num_received: dict[tuple[int, int, int], int] = defaultdict(int)
        self.num_prepared = 0

    def prepare(self, setup: StepSetup) -> None:
        self.num_prepared += 1

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        for destination, message in messages.items():
            self._sent[transfer.channel.tag, self._rank, destination].append(message.packed().clone())

    def receive(self, link: Link, messages: Mapping[int, Message]) -> FromNetwork:
        ((source, message),) = messages.items()
        wire = link.wires[0].tag, source, self._rank
        self._num_received[wire] += 1
        return FromNetwork(self._sent[wire], self._num_received[wire], message)


class FromNetwork:
    """The message of a number that a wire has, or will have."""

    def __init__(self, sent: Sequence[Tensor], number: int, message: Message) -> None:
        self._sent, self._number, self._message, self._is_there = sent, number, message, False
        self._look()

    def _look(self) -> None:
        if not self._is_there and len(self._sent) >= self._number:
            self._is_there, rows, first = True, self._sent[self._number - 1], 0
            for to_row, count in self._message.runs:
                self._message.rows[to_row : to_row + count] = rows[first : first + count]
                first += count

    def wait(self) -> None:
        self._look()
        if not self._is_there:
            raise WouldWaitError


class Ranks:
    """The carriers of all ranks, and the operations that each has yet to do.

    Args:
        host: of all ranks, as far as memory and threads go.
        seed: of the order in which they get on.
        hosts: of each rank; rows between two go over a network. None if there is only one.
    """

    def __init__(self, host: Host, seed: int, hosts: Sequence[str] | None = None) -> None:
        self.num_ranks, self.draw, self.host = len(host.arenas), random.Random(seed), host
        num_ranks = self.num_ranks
        self.sent: dict[tuple[int, int, int], list[Tensor]] = defaultdict(list)
        self.wires = [Wire(c.tag, *ends, "") for c in CHANNELS for ends in permutations(range(num_ranks), 2)]
        made = make_links(self.wires, [(of,) for of in range(num_ranks)], hosts=hosts)
        self.links = {(w.tag, w.source, w.destination): link for link in made for w in link.wires}
        self.inboxes = [(c.tag, of) for c in CHANNELS for of in range(num_ranks)]
        self.carriers: list[Any] = [None] * num_ranks
        self.peers: list[PeerCarrier] = [None] * num_ranks  # type: ignore[list-item]
        self.own: dict[tuple[int, Transfer], Tensor] = {}
        self.num_wrong = 0

        def start(rank: int) -> None:
            cpu = torch.device("cpu")
            if hosts is None:
                self.carriers[rank] = self.peers[rank] = PeerCarrier(made, device=cpu)
            else:
                carrier = ByHostCarrier(made, hosts=hosts, device=cpu)
                carrier._far = Network(self.sent)  # type: ignore[assignment]
                self.carriers[rank], self.peers[rank] = carrier, carrier._near
            self._prepare(rank, {of: Rooms(MOST_IN_USE) for of in self.inboxes})

        self._on_threads(start)

    def _on_threads(self, do: Any) -> None:
        errors: list[Exception] = []

        def run(rank: int) -> None:
            self.host.of_thread.rank = rank
            try:
                do(rank)
            except Exception as error:
                # The others may be waiting for this rank.
                errors.append(error)
                self.host.meeting.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.num_ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _prepare(self, rank: int, rooms: dict[Inbox, Rooms]) -> None:
        largest = {c.tag: MAX_ROWS * c.row_bytes for c in CHANNELS}
        self.carriers[rank].prepare(StepSetup(largest_bytes=largest, rooms=rooms))

    def run(self, num_steps: int) -> int:
        """How many pieces were read wrong; ranks go on in turns of any length, and may be steps apart."""
        ranks, num_waits = [self._step_by_step(rank, num_steps) for rank in range(self.num_ranks)], 0
        while ranks:
            one = self.draw.choice(ranks)
            for _ in range(self.draw.randrange(1, 60)):
                outcome = next(one, "over")
                num_waits = num_waits + 1 if outcome == "waits" else 0
                assert num_waits < 10_000, "they wait for each other"
                if outcome == "over":
                    ranks.remove(one)
                    break
        return self.num_wrong

    def _step_by_step(self, rank: int, num_steps: int) -> Iterator[str]:
        """One rank's steps: what it sends and what it reads go on side by side, as on two streams."""
        for step in range(num_steps):
            self.host.of_thread.rank = rank
            events = {of: events_of(of, step, in_turns=False) for of in self.inboxes}
            self._prepare(rank, {of: Rooms.by(order) for of, order in events.items()})
            sides = [self._sends(rank, step, wire) for wire in self.wires if wire.source == rank]
            sides.append(self._reads(rank, step, {of: order for of, order in events.items() if of[1] == rank}))
            while sides:
                side = self.draw.choice(sides)
                self.host.of_thread.rank = rank
                outcome = next(side, "over")
                if outcome == "over":
                    sides.remove(side)
                yield "waits" if outcome == "waits" else "goes on"

    def _sends(self, rank: int, step: int, wire: Wire) -> Iterator[str]:
        for n in range(PER_STEP):
            of = outgoing(pieces_of(wire.tag, wire.destination, step, n, num_ranks=self.num_ranks)[rank])
            message = Message(Sent(wire.tag, rank, wire.destination, step, n).rows(), of.runs, of.pieces)
            link, end = self.links[wire.tag, rank, wire.destination], (wire.tag, rank, wire.destination)
            while True:
                try:
                    self.carriers[rank].send(link, Transfer(CHANNELS[wire.tag], n), {wire.destination: message})
                    break
                except WouldWaitError:
                    self.peers[rank]._ends[end].num_messages -= 1
                    yield "waits"
            yield "goes on"

    def _reads(self, rank: int, step: int, events: dict[Inbox, list[tuple[int, bool]]]) -> Iterator[str]:
        received: dict[Inbox, list[Any]] = {}
        order = [(of[0], event) for of, all_events in events.items() for event in all_events]
        tags = [tag for tag, _ in order]
        self.draw.shuffle(tags)
        left = {of[0]: iter(all_events) for of, all_events in events.items()}
        for tag in tags:
            n, is_end = next(left[tag])
            transfer, pieces = Transfer(CHANNELS[tag], n), pieces_of(tag, rank, step, n, num_ranks=self.num_ranks)
            carrier = self.carriers[rank]
            if not is_end:
                room = self._room(rank, transfer)
                received[tag, n] = [
                    carrier.receive(
                        self.links[tag, source, rank],
                        {source: Message(room, joined((p.to_row, p.num_rows) for p in of))},
                    )
                    for source, of in pieces.items()
                ]
            else:
                for receive in received.pop((tag, n)):
                    while True:
                        try:
                            receive.wait()
                            break
                        except WouldWaitError:
                            yield "waits"
                yield "goes on"
                self._look(rank, tag, step, n)
                carrier.give_back(transfer)
                self.own.pop((rank, transfer), None)
            yield "goes on"

    def _room(self, rank: int, transfer: Transfer) -> Tensor:
        """Lent, or where nobody of a rank's host sends it rows its own."""
        lent: Tensor | None = self.carriers[rank].room(transfer, MAX_ROWS)
        if lent is not None:
            return lent
        channel = transfer.channel
        return self.own.setdefault((rank, transfer), torch.empty(MAX_ROWS, channel.hidden, dtype=channel.dtype))

    def _look(self, rank: int, tag: int, step: int, n: int) -> None:
        """Read a room, and leave nothing in it."""
        room = self._room(rank, Transfer(CHANNELS[tag], n))
        for source, pieces in pieces_of(tag, rank, step, n, num_ranks=self.num_ranks).items():
            rows = Sent(tag, source, rank, step, n).rows()
            for p in pieces:
                found, sent = room[p.to_row : p.to_row + p.num_rows], rows[p.row : p.row + p.num_rows]
                self.num_wrong += not torch.equal(found, sent)
        room.fill_(float("nan"))


def test_the_events_of_a_step_serve_the_next() -> None:
    made = []
    for num_steps in (1, 6):
        host = Host(2)
        with host.patched():
            Ranks(host, 0).run(num_steps=num_steps)
        made.append(host.num_events)
    assert 0 < made[0] <= made[1] < 2 * made[0]


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_read_right_in_whatever_order_ranks_get_on(num_ranks: int, seed: int) -> None:
    host = Host(num_ranks)
    with host.patched():
        assert Ranks(host, seed).run(num_steps=4) == 0


@pytest.mark.parametrize("hosts", ["ab", "aab", "abb", "aabb", "abba"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_read_right_whether_they_come_from_this_host_or_another(hosts: str, seed: int) -> None:
    host = Host(len(hosts))
    with host.patched(), mock.patch.object(by_host, "NcclCarrier"):
        assert Ranks(host, seed, hosts).run(num_steps=3) == 0


def test_only_what_goes_to_another_host_goes_over_the_network() -> None:
    host = Host(4)
    with host.patched(), mock.patch.object(by_host, "NcclCarrier") as nccl:
        ranks = Ranks(host, 0, "aabb")
        ranks.run(num_steps=1)
    far = [link for link in dict.fromkeys(ranks.links.values()) if {rank < 2 for rank in link.ranks} == {True, False}]
    assert nccl.call_args_list == [mock.call(far, device=torch.device("cpu"))] * 4
    ends = {(source, destination) for (_, source, destination), sent in ranks.sent.items() if sent}
    assert ends == {(source, of) for source, of in permutations(range(4), 2) if (source < 2) != (of < 2)}
    assert [carrier._far.num_prepared for carrier in ranks.carriers] == [2] * 4, "at the start, and for the step"


def _no_room_awaited(self: Slots, microbatch: int) -> int:
    return 0


def _one_step_forgotten(self: Slots, rooms: Rooms) -> None:
    self.rooms = rooms


MUTANTS: dict[str, Any] = {
    "rooms are not waited for": lambda: mock.patch.object(Slots, "awaited", _no_room_awaited),
    "the rooms of earlier steps are forgotten": lambda: mock.patch.object(Slots, "begin", _one_step_forgotten),
    "slots are given out one too early": lambda: mock.patch.object(
        Slots, "awaited", lambda self, m: self.num_before + max(0, self.rooms.of[m].after - 1)
    ),
    "the count comes first": lambda: mock.patch.object(
        peer, "put_message", lambda rows, pieces, to, **_: to.arrived.tensor.fill_(to.number)
    ),
    "rows land in the wrong places": lambda: mock.patch.object(
        peer, "put_message", lambda rows, pieces, to, **_: put(rows, [(0, b, n) for _, b, n in pieces], to)
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_protocol_is_noticed(mutant: str) -> None:
    num_wrong = 0
    for seed in range(3):
        host = Host(2)
        with host.patched(), MUTANTS[mutant]():
            num_wrong += Ranks(host, seed).run(num_steps=4)
    assert num_wrong


def test_a_room_has_changes_of_its_own() -> None:
    """Rows that arrive in one room are no change of another, whose rows autograd may have saved."""
    host = Host(2)
    with host.patched():
        ranks = Ranks(host, 0)
        host.of_thread.rank = 0
        ranks._prepare(0, {of: Rooms.by([(0, False), (1, False), (0, True), (1, True)]) for of in ranks.inboxes})
        one, other = (ranks.carriers[0].room(Transfer(CHANNELS[0], m), MAX_ROWS) for m in (0, 1))
        one.requires_grad_()
        loss = one.square().sum()
        other.fill_(1.0)
        loss.backward()
        assert one.grad is not None
        assert ranks.carriers[0].lends(one.detach()[3:]) and not ranks.carriers[0].lends(one.grad)


def test_a_signal_is_counted_and_takes_no_room() -> None:
    host = Host(2)
    with host.patched():
        ranks = Ranks(host, 0)
        signals = Transfer(replace(CHANNELS[0], is_signal=True), 0)
        link, token = ranks.links[0, 0, 1], Message(torch.zeros(1, 1), ((0, 1),))
        before = [arena.clone() for arena in host.arenas]
        ranks.carriers[0].send(link, signals, {1: token})
        first, second = (ranks.carriers[1].receive(link, {0: token}) for _ in range(2))
        first.wait()
        with pytest.raises(WouldWaitError):
            second.wait()
        assert sum(int((a != b).sum()) for a, b in zip(host.arenas, before, strict=True)) == 1
