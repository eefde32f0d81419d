"""What the ranks of the peer transport's own test do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.put import library
from hetsched.runtime.exchange import Message, Wire
from hetsched.runtime.transport.links import make_links
from hetsched.runtime.transport.peer import PeerCarrier, WireEnd

HIDDEN, MAX_ROWS = 136, 200
NUM_MESSAGES, BURST = 700, 10
DTYPES = (torch.float32, torch.bfloat16)
WIRES = [Wire(tag, source, 1 - source, "") for tag in (0, 1) for source in (0, 1)]
DEADLINE_S = 60.0


def message_of(tag: int, source: int, number: int) -> Message:
    """Random rows and runs of them, few long ones or many of one row, the same on both ranks."""
    draw = random.Random(f"{tag} {source} {number}")
    generator = torch.Generator().manual_seed(draw.randrange(1 << 40))
    rows = torch.randn(MAX_ROWS, HIDDEN, generator=generator).to(draw.choice(DTYPES))
    if draw.random() < 0.1:
        return Message(rows, tuple((first, 1) for first in draw.sample(range(MAX_ROWS), library.MOST_COPIES + 20)))
    cuts = sorted(draw.sample(range(MAX_ROWS + 1), 4))
    return Message(rows, ((cuts[2], cuts[3] - cuts[2]), (cuts[0], cuts[1] - cuts[0])))


def delay() -> None:
    torch.cuda._sleep(random.choice([0, 0, 30_000, 1_000_000]))  # type: ignore[no-untyped-call]


def copy_out_and_poison(self: PeerCarrier, slot: Tensor, buffer: Tensor) -> None:
    """A slot that was taken holds no rows any more."""
    buffer.copy_(slot)
    slot.fill_(float("nan"))


_put = PeerCarrier._put


def count_early(self: PeerCarrier, end: WireEnd, message: Message, ticket: Tensor) -> None:
    """A mutant: the counter says that rows have arrived which have not left yet."""
    library.stream_write_value(end.arrived, end.count + 1)
    torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
    _put(self, end, message, ticket)


MUTANTS: dict[str, tuple[str, Callable[..., None]]] = {
    "no credit": ("_await_credit", lambda *_: None),
    "count before rows": ("_put", count_early),
}


def exchange(mutant: str | None) -> None:
    """Both ranks send bursts on two wires each, of more messages than slots; whoever sends or takes is often late.

    Raises:
        AssertionError: a message is wrong, or, with a mutant, none is.
    """
    rank = dist.get_rank()
    torch.cuda.set_device(rank)
    random.seed(rank)
    patches = [mock.patch.object(PeerCarrier, "_copy_out", copy_out_and_poison)]
    if mutant is not None:
        patches.append(mock.patch.object(PeerCarrier, *MUTANTS[mutant]))
    for patch in patches:
        patch.start()
    links = make_links(WIRES, [(0,), (1,)])
    carrier = PeerCarrier(links, device=torch.device("cuda", rank))
    carrier.prepare({wire.tag: MAX_ROWS * HIDDEN * 4 for wire in WIRES})
    of_wire = {(w.tag, w.source): link for link in links for w in link.wires}
    numbers = [(wire.tag, n) for n in range(NUM_MESSAGES) for wire in WIRES if wire.source == rank]
    out = {key: message_of(key[0], rank, key[1]) for key in numbers}
    on_gpu = {key: Message(message.rows.cuda(), message.runs) for key, message in out.items()}
    expected = {key: message_of(key[0], 1 - rank, key[1]).packed() for key in numbers}
    found = {key: torch.zeros_like(rows, device="cuda") for key, rows in expected.items()}
    for dtype in DTYPES:
        torch.empty(1, dtype=dtype, device="cuda").fill_(float("nan"))
    delay()
    torch.cuda.synchronize()
    dist.all_reduce(torch.zeros(1))
    works = []
    for first in range(0, len(numbers), BURST * 2):
        burst = numbers[first : first + BURST * 2]
        for key in burst:
            delay()
            works.append(carrier.send(of_wire[key[0], rank], {1 - rank: on_gpu[key]}))
        for key in sorted(burst):
            delay()
            works.append(carrier.receive(of_wire[key[0], 1 - rank], {1 - rank: found[key]}))
    deadline = time.monotonic() + DEADLINE_S
    while not all(work.is_completed() for work in works):
        assert time.monotonic() < deadline, "messages are missing"
        time.sleep(0.01)
    num_wrong = sum(not torch.equal(found[key].cpu(), rows) for key, rows in expected.items())
    dist.all_reduce(torch.zeros(1))
    assert bool(num_wrong) == (mutant is not None), f"{num_wrong} of {len(expected)} messages are wrong"
