"""What the ranks of the peer transport's own test do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise, permutations, product
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.put import library
from hetsched.kernels.put.parts import MOST_COPIES, Slot, put_parts
from hetsched.runtime.exchange import Message, Wire
from hetsched.runtime.transport import peer
from hetsched.runtime.transport.links import Link, make_links
from hetsched.runtime.transport.peer import PeerCarrier, StreamWork, WireEnd

HIDDEN, MAX_ROWS = 136, 200
PART_BYTES = 1 << 14
"""So small that most messages have several parts."""
BURST = 10
TAGS = (0, 1)
DTYPES = (torch.float32, torch.bfloat16)
DEADLINE_S = 60.0
Key = tuple[Wire, int]
"""A wire and the number of a message on it."""


def runs_of(draw: random.Random, num_rows: int | None = None) -> tuple[tuple[int, int], ...]:
    """Few long runs of rows or many of one row, of as many rows as asked for, none of them in two runs."""
    if draw.random() < 0.1 and num_rows in (None, MOST_COPIES + 20):
        return tuple((first, 1) for first in draw.sample(range(MAX_ROWS), MOST_COPIES + 20))
    if num_rows is None:
        cuts = sorted(draw.sample(range(MAX_ROWS + 1), 4))
        return (cuts[2], cuts[3] - cuts[2]), (cuts[0], cuts[1] - cuts[0])
    first = draw.randrange(MAX_ROWS - num_rows + 1)
    cuts = sorted({0, num_rows, *(draw.randrange(num_rows) for _ in range(3))})
    runs = [(first + start, end - start) for start, end in pairwise(cuts)]
    draw.shuffle(runs)
    return tuple(runs)


def rows_of(key: Key) -> tuple[Tensor, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """A message's random rows, its runs at the source and those at the destination, the same on both ranks."""
    draw = random.Random(f"{key}")
    generator = torch.Generator().manual_seed(draw.randrange(1 << 40))
    rows = torch.randn(MAX_ROWS, HIDDEN, generator=generator).to(draw.choice(DTYPES))
    runs = runs_of(draw)
    return rows, runs, runs_of(draw, sum(count for _, count in runs))


def sent(key: Key) -> Message:
    rows, runs, _ = rows_of(key)
    return Message(rows.cuda(), runs)


def landing(key: Key) -> Message:
    rows, _, runs = rows_of(key)
    return Message(torch.full_like(rows, -1.0, device="cuda"), runs)


def expected(key: Key) -> Tensor:
    """What the landing's memory holds in the end: what no run covers is as before."""
    rows, source_runs, runs = rows_of(key)
    packed, out, at = torch.cat([rows[first : first + n] for first, n in source_runs]), torch.full_like(rows, -1.0), 0
    for first, count in runs:
        out[first : first + count] = packed[at : at + count]
        at += count
    return out


def delay() -> None:
    torch.cuda._sleep(random.choice([0, 0, 30_000, 1_000_000]))  # type: ignore[no-untyped-call]


_hand_back = PeerCarrier._hand_back


def poison_and_hand_back(self: PeerCarrier, end: WireEnd, slot: Slot) -> None:
    """A slot that was taken holds no rows any more."""
    slot.rows.fill_(float("nan"))
    _hand_back(self, end, slot)


_put = PeerCarrier._put


def count_early(self: PeerCarrier, end: WireEnd, message: Message, ticket: Tensor) -> None:
    """A mutant: the counter says that a message has arrived which has not left yet."""
    ahead = WireEnd.next_slot
    with mock.patch.object(WireEnd, "next_slot", lambda end, message: _counted(ahead(end, message))):
        _put(self, end, message, ticket)


def _counted(slot: Slot) -> Slot:
    library.stream_write_value(slot.arrived, slot.first + len(slot.ends) - 1)
    torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
    return slot


def count_parts_early(self: PeerCarrier, end: WireEnd, message: Message, ticket: Tensor) -> None:
    """A mutant: of two parts of a message the second is counted when the first one is there."""
    self._await_credit(end)
    slot = end.next_slot(message)
    half = len(slot.ends) // 2
    if half == 0:
        put_parts(message.rows, message.runs, slot, ticket=ticket)
        return
    cut = slot.ends[half - 1]
    head, tail = split_runs(message.runs, cut)
    put_parts(message.rows, head, Slot(slot.rows[:cut], slot.ends[:half], slot.arrived, slot.first), ticket=ticket)
    library.stream_write_value(slot.arrived, slot.first + half)
    torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
    ends = [end - cut for end in slot.ends[half:]]
    put_parts(message.rows, tail, Slot(slot.rows[cut:], ends, slot.arrived, slot.first + half), ticket=ticket)


def split_runs(runs: tuple[tuple[int, int], ...], cut: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The runs' first ``cut`` rows, and the others."""
    head, tail = [], []
    for first, count in runs:
        here = max(0, min(cut, count))
        head += [(first, here)] if here else []
        tail += [(first + here, count - here)] if here < count else []
        cut -= here
    return head, tail


MUTANTS: dict[str, tuple[str, Callable[..., None]]] = {
    "no credit": ("_await_credit", lambda *_: None),
    "count before rows": ("_put", count_early),
    "a part counted early": ("_put", count_parts_early),
}


def exchange(mutant: str | None, num_exchanges: int) -> None:
    """Every rank sends bursts to every other, of more messages than slots; whoever sends or takes is often late.

    Args:
        mutant: what is wrong, of MUTANTS.
        num_exchanges: messages of all wires.

    Raises:
        AssertionError: a message is wrong, or, with a mutant, none is.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(rank)
    random.seed(rank)
    wires = [Wire(tag, *ends, "") for tag in TAGS for ends in permutations(range(num_ranks), 2)]
    num_messages = num_exchanges // len(wires)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(peer, "PART_BYTES", PART_BYTES))
        patches.enter_context(mock.patch.object(PeerCarrier, "_hand_back", poison_and_hand_back))
        if mutant is not None:
            patches.enter_context(mock.patch.object(PeerCarrier, *MUTANTS[mutant]))
        num_wrong = _exchange(wires, num_messages, _post)
    dist.all_reduce(num_wrong)
    total = num_messages * len(wires)
    assert bool(num_wrong) == (mutant is not None), f"{int(num_wrong)} of {total} messages are wrong"


def exchange_in_turns(num_rounds: int) -> None:
    """As many messages on each wire as it has slots, then both ends stop, and again.

    No stream ever waits for a peer: for tools under which one that does would hold the others.

    Raises:
        AssertionError: a message is wrong.
    """
    torch.cuda.set_device(dist.get_rank())
    wires = [Wire(tag, source, 1 - source, "") for tag in TAGS for source in (0, 1)]
    with mock.patch.object(peer, "PART_BYTES", PART_BYTES):
        num_wrong = int(_exchange(wires, num_rounds * peer.NUM_SLOTS, _post_in_turns))
    assert num_wrong == 0, f"{num_wrong} messages are wrong"


Post = Callable[[PeerCarrier, dict[Wire, Link], dict[Key, Message], dict[Key, Message]], Iterator[StreamWork]]


def _exchange(wires: list[Wire], num_messages: int, post: Post) -> Tensor:
    """How many of the messages that this rank takes are wrong."""
    rank = dist.get_rank()
    made = make_links(wires, [(of,) for of in range(dist.get_world_size())])
    links = {link.wires[0]: link for link in made}
    carrier = PeerCarrier(made, device=torch.device("cuda", rank))
    carrier.prepare({wire.tag: MAX_ROWS * HIDDEN * 4 for wire in wires})
    out = {(wire, n): sent((wire, n)) for wire in links for n in range(num_messages) if wire.source == rank}
    into = {(wire, n): landing((wire, n)) for wire in links for n in range(num_messages) if wire.destination == rank}
    for dtype in DTYPES:
        torch.empty(1, dtype=dtype, device="cuda").fill_(float("nan"))
    delay()
    torch.cuda.synchronize()
    dist.all_reduce(torch.zeros(1))
    works = list(post(carrier, links, out, into))
    deadline = time.monotonic() + DEADLINE_S
    while not all(work.is_completed() for work in works):
        assert time.monotonic() < deadline, "messages are missing"
        time.sleep(0.01)
    wrong = sum(not torch.equal(message.rows.cpu(), expected(key)) for key, message in into.items())
    dist.all_reduce(torch.zeros(1))
    return torch.tensor([wrong])


def _post(
    carrier: PeerCarrier, links: dict[Wire, Link], out: dict[Key, Message], into: dict[Key, Message]
) -> Iterator[StreamWork]:
    """Bursts of messages in a random order of the wires; nothing is waited for."""
    num_messages = max(n for _, n in out) + 1
    for first in range(0, num_messages, BURST):
        numbers = range(first, min(first + BURST, num_messages))
        for wire in random.sample(list(links), len(links)):
            for n in numbers:
                delay()
                if wire.source == dist.get_rank():
                    yield carrier.send(links[wire], {wire.destination: out[wire, n]})
                elif wire.destination == dist.get_rank():
                    yield carrier.receive(links[wire], {wire.source: into[wire, n]})


def _post_in_turns(
    carrier: PeerCarrier, links: dict[Wire, Link], out: dict[Key, Message], into: dict[Key, Message]
) -> Iterator[StreamWork]:
    """All that the slots hold is sent, and when it is there it is taken."""
    for first in range(0, max(n for _, n in out) + 1, peer.NUM_SLOTS):
        numbers = range(first, first + peer.NUM_SLOTS)
        for wire, n in product((w for w in links if w.source == dist.get_rank()), numbers):
            yield carrier.send(links[wire], {wire.destination: out[wire, n]})
        _all_stop()
        for wire, n in product((w for w in links if w.destination == dist.get_rank()), numbers):
            yield carrier.receive(links[wire], {wire.source: into[wire, n]})
        _all_stop()


def _all_stop() -> None:
    torch.cuda.synchronize()
    dist.all_reduce(torch.zeros(1))
