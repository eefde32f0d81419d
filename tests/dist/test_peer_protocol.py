"""The peer transport's rooms and counters, all ranks in one process: whatever comes first, every row is read right.

Memory is the host's, and what a stream would wait for is looked at instead: an operation that would wait is not yet
done, another one is, in any order. The same on GPUs is in tests/gpu/test_peer.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from hetsched.layout.rank_share import joined, outgoing
from hetsched.lower.rooms import Rooms
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport import peer
from hetsched.runtime.transport.links import make_links
from hetsched.runtime.transport.peer import PeerCarrier, Slots
from tests.dist.peer_cases import CHANNELS, MAX_ROWS, MOST_IN_USE, PER_STEP, Sent, events_of, pieces_of

Inbox = tuple[int, int]


class WouldWaitError(Exception):
    """A stream would wait here."""


class Host:
    """What the carriers of several ranks take for CUDA and torch.distributed, each on a thread of its own."""

    def __init__(self, num_ranks: int) -> None:
        self.of_thread, self.arenas = threading.local(), [torch.empty(0)] * num_ranks
        self.meeting = threading.Barrier(num_ranks)

    def empty(self, num_bytes: int, **_: Any) -> Tensor:
        arena = torch.full((num_bytes,), 255, dtype=torch.uint8)
        self.arenas[self.of_thread.rank] = arena
        return arena

    def rendezvous(self, arena: Tensor, group: object) -> Any:
        return SimpleNamespace(get_buffer=lambda rank, shape, dtype: self.arenas[rank])

    @contextmanager
    def patched(self) -> Iterator[None]:
        event = SimpleNamespace(query=lambda: True, record=lambda *stream: None)
        cuda = SimpleNamespace(
            Stream=lambda device: object(), Event=lambda **kind: event, synchronize=lambda device: None
        )
        with ExitStack() as patches:
            for name, value in {
                "torch.cuda": cuda,
                "dist.get_rank": lambda: self.of_thread.rank,
                "dist.all_reduce": lambda tensor: self.meeting.wait(),
                "dist.group": SimpleNamespace(WORLD=object()),
                "symmetric_memory": self,
                "put_message": put,
                "library.pack_and_put": lambda *args: None,
                "library.wait_for_counts": await_counts,
                "library.stream_write_value": lambda counter, value: counter.fill_(value),
            }.items():
                patches.enter_context(mock.patch(f"{peer.__name__}.{name}", value))
            yield


def await_counts(counters: Sequence[Tensor], values: Sequence[int]) -> None:
    if any(int(counter) < value for counter, value in zip(counters, values, strict=True)):
        raise WouldWaitError


def put(rows: Tensor, pieces: Sequence[tuple[int, int, int]], to: Any, **_: Any) -> None:
    if to.returned is not None:
        await_counts([to.returned], [to.awaited])
    row_bytes = rows.shape[1] * rows.element_size()
    for row, to_row, count in pieces:
        room = to.room[to_row * row_bytes : (to_row + count) * row_bytes].view(rows.dtype)
        room.copy_(rows[row : row + count].flatten())
    to.arrived.fill_(to.number)


class Ranks:
    """The carriers of all ranks, and the operations that each has yet to do."""

    def __init__(self, host: Host, seed: int) -> None:
        self.num_ranks, self.draw, self.host = len(host.arenas), random.Random(seed), host
        num_ranks = self.num_ranks
        self.wires = [Wire(c.tag, *ends, "") for c in CHANNELS for ends in permutations(range(num_ranks), 2)]
        made = make_links(self.wires, [(of,) for of in range(num_ranks)])
        self.links = {(w.tag, w.source, w.destination): link for link in made for w in link.wires}
        self.inboxes = [(c.tag, of) for c in CHANNELS for of in range(num_ranks)]
        self.carriers: list[PeerCarrier] = [None] * num_ranks  # type: ignore[list-item]
        self.num_wrong = 0

        def start(rank: int) -> None:
            self.carriers[rank] = PeerCarrier(made, device=torch.device("cpu"))
            self._prepare(rank, {of: Rooms(MOST_IN_USE) for of in self.inboxes})

        self._on_threads(start)

    def _on_threads(self, do: Any) -> None:
        def run(rank: int) -> None:
            self.host.of_thread.rank = rank
            do(rank)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.num_ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

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
                    self.carriers[rank]._ends[end].num_messages -= 1
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
                room = carrier.room(transfer, MAX_ROWS)
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
            yield "goes on"

    def _look(self, rank: int, tag: int, step: int, n: int) -> None:
        """Read a room, and leave nothing in it."""
        room = self.carriers[rank].room(Transfer(CHANNELS[tag], n), MAX_ROWS)
        for source, pieces in pieces_of(tag, rank, step, n, num_ranks=self.num_ranks).items():
            rows = Sent(tag, source, rank, step, n).rows()
            for p in pieces:
                found, sent = room[p.to_row : p.to_row + p.num_rows], rows[p.row : p.row + p.num_rows]
                self.num_wrong += not torch.equal(found, sent)
        room.fill_(float("nan"))


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_read_right_in_whatever_order_ranks_get_on(num_ranks: int, seed: int) -> None:
    host = Host(num_ranks)
    with host.patched():
        assert Ranks(host, seed).run(num_steps=4) == 0


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
        peer, "put_message", lambda rows, pieces, to, **_: to.arrived.fill_(to.number)
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
