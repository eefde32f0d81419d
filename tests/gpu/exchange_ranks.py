"""What the ranks of a test of whole exchanges do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import pairwise
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.layout.rank_share import RankShare, rank_share
from hetsched.layout.routes import Segment
from hetsched.lower.rooms import Rooms
from hetsched.runtime.arriving import Summed
from hetsched.runtime.exchange import Channel, Exchange, StepSetup, Transfer, Wire
from hetsched.runtime.transport.links import make_links
from hetsched.runtime.transport.nccl import NcclCarrier
from hetsched.runtime.transport.peer import PeerCarrier
from hetsched.runtime.transport.streamed import StreamedTransport

HIDDEN, NUM_ROWS, NUM_STEPS = 64, 1000, 3
TIMEOUT = timedelta(seconds=20)
CHANNELS = [Channel(tag, HIDDEN, torch.float32, name) for tag, name in enumerate(("once", "summed"))]


def routes() -> list[list[Segment]]:
    """To both ranks: runs of rows of either in turn, each once; and the sum of both ranks' rows."""
    cuts = [0, 7, 8, 120, 500, 501, NUM_ROWS]
    once = [
        Segment(number % 2, start, rank, NUM_ROWS - end, end - start)
        for rank in range(2)
        for number, (start, end) in enumerate(pairwise(cuts))
    ]
    return [once, [Segment(source, 0, rank, 0, NUM_ROWS) for rank in range(2) for source in range(2)]]


def share_of(route: list[Segment], rank: int) -> RankShare:
    """What a rank does of a route."""
    columns = [(s.src_rank, s.src_row, s.dst_rank, s.dst_row, s.num_rows) for s in route]
    return rank_share(np.array(columns, np.int64), rank, num_rows=NUM_ROWS)


def expected(route: list[Segment], rank: int, rows: list[Tensor]) -> Tensor:
    """Row runs added one by one."""
    out = torch.zeros(NUM_ROWS, HIDDEN)
    for s in route:
        if s.dst_rank == rank:
            out[s.dst_row : s.dst_row + s.num_rows] += rows[s.src_rank][s.src_row : s.src_row + s.num_rows]
    return out


def exchange_rows(transport: str, waits: bool) -> None:
    """Steps in which CUDA refuses whatever makes the host wait for it.

    Args:
        transport: "nccl" or "peer".
        waits: a mutant: a sum is looked at by the host.

    Raises:
        AssertionError: rows are wrong.
        RuntimeError: the host was made to wait.
    """
    rank = dist.get_rank()
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    links = make_links([Wire(c.tag, of, 1 - of, c.name) for c in CHANNELS for of in range(2)], [(0, 1)])
    is_nccl = transport == "nccl"
    carrier = NcclCarrier(links, device=device) if is_nccl else PeerCarrier(links, device=device)
    exchange = Exchange(rank, StreamedTransport(carrier, links, device=device, timeout=TIMEOUT), device=device)
    largest = {c.tag: NUM_ROWS * c.row_bytes for c in CHANNELS}
    shares = [share_of(route, rank) for route in routes()]
    made = [torch.randn(NUM_ROWS, HIDDEN, generator=torch.Generator().manual_seed(of)) for of in range(2)]
    mine = made[rank].to(device)
    for step in range(NUM_STEPS):
        # The first step makes the arena.
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        once = Rooms.by([(step, False), (step, True)])
        setup = StepSetup(largest_bytes=largest, rooms={(c.tag, of): once for c in CHANNELS for of in range(2)})
        with exchange.step(setup), _looking_at_sums(waits):
            arriving = []
            for channel, share in zip(CHANNELS, shares, strict=True):
                exchange.send(Transfer(channel, step), share, mine)
                arriving.append(exchange.receive(Transfer(channel, step), share))
            found = [rows.take() for rows in arriving]
            for channel in CHANNELS:
                exchange.give_back(Transfer(channel, step))
            exchange.flush()
        torch.cuda.set_sync_debug_mode("default")
        for rows, route in zip(found, routes(), strict=True):
            assert torch.equal(rows.cpu(), expected(route, rank, made))


def _looking_at_sums(waits: bool) -> AbstractContextManager[object]:
    original = Summed.wait

    def wait(self: Summed) -> Tensor:
        out = original(self)
        if waits:
            out.sum().item()
        return out

    return mock.patch.object(Summed, "wait", wait)
