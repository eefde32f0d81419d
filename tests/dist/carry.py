"""What ranks do to carry out crossings over gloo, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from hetsched.layout.rank_share import rank_share
from hetsched.runtime.arriving import Arriving
from hetsched.runtime.exchange import Channel, Exchange, Transfer
from hetsched.runtime.transport.gloo import GlooTransport
from tests.dist.mutants import apply_mutant

IntArray = NDArray[np.int64]
FORWARD, BACKWARD = Channel(0, 2, torch.int64, "forward"), Channel(1, 1, torch.int64, "backward")
AT_ONCE = 64


@dataclass(frozen=True)
class Load:
    """The routes of a crossing, and for each rank of the producer and of the consumer its rows ``[n, hidden]``."""

    forward: IntArray
    backward: IntArray
    rows: dict[int, IntArray]
    gradients: dict[int, IntArray]


@dataclass(frozen=True)
class Delivery:
    """What a rank received, if it is on that side, and the bytes that it sent forward and backward."""

    rows: IntArray | None
    gradients: IntArray | None
    sent_bytes: tuple[int, int]


def carry(loads: Sequence[Load], mutant: str | None) -> list[Delivery]:
    """Carry out every load; those that are posted together are on their way at once."""
    undo = apply_mutant(mutant)
    try:
        return _carry(loads)
    finally:
        undo()


def _carry(loads: Sequence[Load]) -> list[Delivery]:
    rank = dist.get_rank()
    exchange = Exchange(rank, GlooTransport(timeout=timedelta(seconds=60)), device=torch.device("cpu"))
    deliveries = []
    for first in range(0, len(loads), AT_ONCE):
        posted = [_post(exchange, rank, first + i, load) for i, load in enumerate(loads[first : first + AT_ONCE])]
        for (forward, forward_bytes), (backward, backward_bytes) in posted:
            rows, gradients = (None if way is None else way.wait().numpy() for way in (forward, backward))
            deliveries.append(Delivery(rows, gradients, (forward_bytes, backward_bytes)))
        exchange.flush()
    return deliveries


def _post(exchange: Exchange, rank: int, number: int, load: Load) -> list[tuple[Arriving | None, int]]:
    """Start what a rank has to send and to receive, in either direction."""
    posted = []
    for channel, route, here, there in (
        (FORWARD, load.forward, load.rows, load.gradients),
        (BACKWARD, load.backward, load.gradients, load.rows),
    ):
        share, before = rank_share(route, rank, num_rows=len(there.get(rank, ()))), exchange.sent_bytes
        if rank in here:
            exchange.send(Transfer(channel, number), share, torch.from_numpy(here[rank]))
        arriving = exchange.receive(Transfer(channel, number), share) if rank in there else None
        posted.append((arriving, exchange.sent_bytes - before))
    return posted
