"""What the ranks of the peer transport's own test do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import permutations
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.put.message import Destination
from hetsched.layout.rank_share import Piece, joined, outgoing
from hetsched.lower.rooms import Rooms
from hetsched.runtime.events import Event
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport.links import Link, make_links
from hetsched.runtime.transport.peer import PeerCarrier, PeerReceive, PeerSend
from tests.dist.peer_cases import CHANNELS, MAX_ROWS, MOST_IN_USE, PER_STEP, Sent, events_of, pieces_of
from tests.gpu.shared_gpus import device_of

DEADLINE_S = 60.0


def delay() -> None:
    torch.cuda._sleep(random.choice([0, 0, 30_000, 1_000_000]))  # type: ignore[no-untyped-call]


_put = PeerCarrier._put


def no_wait(
    self: PeerCarrier, message: Message, pieces: tuple[Piece, ...], to: Destination, link: Link, done: Event
) -> None:
    """A mutant: rows are put before the room is given back."""
    _put(self, message, pieces, to._replace(returned=None), link, done)


def count_early(
    self: PeerCarrier, message: Message, pieces: tuple[Piece, ...], to: Destination, link: Link, done: Event
) -> None:
    """A mutant: the counter says that a message has arrived which has not left yet."""
    _put(self, message, (), to, link, done)
    with torch.cuda.stream(self._streams[link]):
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
    _put(self, message, pieces, to, link, done)


MUTANTS: dict[str, Callable[..., None] | None] = {
    "rooms are not waited for": no_wait,
    "count before rows": count_early,
    "given back before it is read": None,
}


def exchange(mutant: str | None, num_exchanges: int) -> None:
    """Every rank sends to every other, more messages than slots; whoever sends or reads is often late.

    Args:
        mutant: what is wrong, of MUTANTS.
        num_exchanges: messages of all wires.

    Raises:
        AssertionError: a message is wrong, or, with a mutant, none is.
    """
    ranks = _Ranks(in_turns=False, reads_late=mutant == "given back before it is read")
    num_steps = num_exchanges // (len(ranks.wires) * PER_STEP)
    with ExitStack() as patches:
        broken = None if mutant is None else MUTANTS[mutant]
        if broken is not None:
            patches.enter_context(mock.patch.object(PeerCarrier, "_put", broken))
        num_wrong = ranks.run(num_steps)
    dist.all_reduce(num_wrong)
    total = num_steps * len(ranks.wires) * PER_STEP
    assert bool(num_wrong) == (mutant is not None), f"{int(num_wrong)} rooms of {total} messages are wrong"


def exchange_in_turns(num_steps: int) -> None:
    """As many messages on each wire as there are slots, then both ends stop, and again.

    No stream ever waits for a peer: for tools under which one that does would hold the others.

    Raises:
        AssertionError: a message is wrong.
    """
    num_wrong = int(_Ranks(in_turns=True, reads_late=False).run(num_steps))
    assert num_wrong == 0, f"{num_wrong} rooms are wrong"


class _Ranks:
    """One rank's part: its carrier, and a stream that reads while the current one sends.

    Args:
        in_turns: all ranks stop between sending and reading.
        reads_late: a mutant: rooms are given back first.
    """

    def __init__(self, *, in_turns: bool, reads_late: bool) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        device = device_of(self.rank, num_ranks=self.size)
        random.seed(self.rank)
        self.in_turns, self.reads_late = in_turns, reads_late
        self.wires = [Wire(c.tag, *ends, "") for c in CHANNELS for ends in permutations(range(self.size), 2)]
        made = make_links(self.wires, [(of,) for of in range(self.size)])
        self.links = {link.wires[0]: link for link in made}
        self.carrier = PeerCarrier(made, device=device)
        self.inboxes = [(c.tag, of) for c in CHANNELS for of in range(self.size)]
        self.reader = torch.cuda.Stream()
        self.found: list[tuple[tuple[int, int, int], Tensor]] = []
        self.works: list[PeerSend | PeerReceive] = []
        self._prepare({of: Rooms(MOST_IN_USE) for of in self.inboxes})

    def _prepare(self, rooms: dict[tuple[int, int], Rooms]) -> None:
        largest = {c.tag: MAX_ROWS * c.row_bytes for c in CHANNELS}
        self.carrier.prepare(StepSetup(largest_bytes=largest, rooms=rooms))

    def run(self, num_steps: int) -> Tensor:
        """How many rooms of this rank were read wrong."""
        for channel in CHANNELS:
            torch.empty(1, dtype=channel.dtype, device="cuda").fill_(float("nan")).clone()
        delay()
        count = MOST_IN_USE if self.in_turns else PER_STEP
        out = {
            sent: sent.rows().cuda()
            for wire in self.wires
            if wire.source == self.rank
            for sent in (Sent(wire.tag, *_ends(wire), s, n) for s in range(num_steps) for n in range(count))
        }
        torch.cuda.synchronize()
        dist.all_reduce(torch.zeros(1))
        for step in range(num_steps):
            events = {of: events_of(of, step, in_turns=self.in_turns) for of in self.inboxes}
            self._prepare({of: Rooms.by(order) for of, order in events.items()})
            self._send(step, out, count)
            self._stop()
            with torch.cuda.stream(self.reader):
                self._read(step, {of: order for of, order in events.items() if of[1] == self.rank})
            self._stop()
        self._finish()
        return torch.tensor([sum(self._is_wrong(*found) for found in self.found)])

    def _send(self, step: int, out: dict[Sent, Tensor], count: int) -> None:
        mine = [wire for wire in self.wires if wire.source == self.rank]
        for wire in random.sample(mine, len(mine)):
            for n in range(count):
                delay()
                pieces = outgoing(pieces_of(wire.tag, wire.destination, step, n, num_ranks=self.size)[self.rank])
                rows = out[Sent(wire.tag, *_ends(wire), step, n)]
                transfer = Transfer(CHANNELS[wire.tag], n)
                message = Message(rows, pieces.runs, pieces.pieces)
                self.works.append(self.carrier.send(self.links[wire], transfer, {wire.destination: message}))

    def _read(self, step: int, events: dict[tuple[int, int], list[tuple[int, bool]]]) -> None:
        """Take and give back rooms as the events say, inboxes in any order."""
        left = {of: iter(order) for of, order in events.items()}
        received: dict[tuple[int, int], list[PeerReceive]] = {}
        while left:
            of = random.choice(list(left))
            event = next(left[of], None)
            if event is None:
                del left[of]
            elif event[1]:
                self._give_back(of[0], step, event[0], received.pop((of[0], event[0])))
            else:
                received[of[0], event[0]] = list(self._receive(of[0], step, event[0]))

    def _receive(self, tag: int, step: int, number: int) -> Iterator[PeerReceive]:
        room = self.carrier.room(Transfer(CHANNELS[tag], number), MAX_ROWS)
        for source, pieces in pieces_of(tag, self.rank, step, number, num_ranks=self.size).items():
            link = next(link for wire, link in self.links.items() if _key(wire) == (tag, source, self.rank))
            runs = joined((piece.to_row, piece.num_rows) for piece in pieces)
            yield self.carrier.receive(link, {source: Message(room, runs)})

    def _give_back(self, tag: int, step: int, number: int, received: list[PeerReceive]) -> None:
        """Read a room when all is there; afterwards it holds no rows any more."""
        transfer = Transfer(CHANNELS[tag], number)
        delay()
        for receive in received:
            receive.wait()
        self.works += received
        if self.reads_late:
            self.carrier.give_back(transfer)
            torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
        room = self.carrier.room(transfer, MAX_ROWS)
        self.found.append(((tag, step, number), room.clone()))
        room.fill_(float("nan"))
        if not self.reads_late:
            self.carrier.give_back(transfer)

    def _is_wrong(self, key: tuple[int, int, int], rows: Tensor) -> bool:
        tag, *which = key
        found = rows.cpu()
        for source, pieces in pieces_of(tag, self.rank, *which, num_ranks=self.size).items():
            sent = Sent(tag, source, self.rank, *which).rows()
            for p in pieces:
                if not torch.equal(found[p.to_row : p.to_row + p.num_rows], sent[p.row : p.row + p.num_rows]):
                    return True
        return False

    def _stop(self) -> None:
        if self.in_turns:
            torch.cuda.synchronize()
            dist.all_reduce(torch.zeros(1))

    def _finish(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not all(work.is_completed() for work in self.works):
            assert time.monotonic() < deadline, "messages are missing"
            time.sleep(0.01)
        dist.all_reduce(torch.zeros(1))


def _ends(wire: Wire) -> tuple[int, int]:
    return wire.source, wire.destination


def _key(wire: Wire) -> tuple[int, int, int]:
    return wire.tag, wire.source, wire.destination
