"""Rows that arrive: in their places where each comes once, summed in the route's order where several do."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch

from hetsched.layout.rank_share import RankShare, rank_share
from hetsched.layout.routes import Segment
from hetsched.runtime.exchange import Channel, Exchange, Message, StepSetup, Transfer
from hetsched.runtime.transport.memory import OwnMemory

HIDDEN = 3
ME = 1
TRANSFER = Transfer(Channel(0, HIDDEN, torch.float64, ""), 0)


class Deliver(OwnMemory):
    """A transport that has only what others sent, and delivers it once that is waited for."""

    def __init__(self, sent: Mapping[int, torch.Tensor]) -> None:
        self._sent = sent

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        return nullcontext()

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        raise AssertionError("nothing leaves this rank")

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Deliver:
        self._messages = messages
        return self

    def wait(self) -> None:
        for source, message in self._messages.items():
            packed = message.packing()
            packed.copy_(self._sent[source][: message.num_rows])
            message.unpack(packed)

    def flush(self) -> None: ...


def share_of(segments: list[Segment], num_rows: int) -> RankShare:
    """What this rank does of a route."""
    columns = [(s.src_rank, s.src_row, s.dst_rank, s.dst_row, s.num_rows) for s in segments]
    return rank_share(np.array(columns, np.int64).reshape(-1, 5), ME, num_rows=num_rows)


def receive(segments: list[Segment], rows: dict[int, torch.Tensor], num_rows: int) -> torch.Tensor:
    """What arrives on this rank of its own rows and of what others sent."""
    exchange, share = Exchange(ME, Deliver(rows), device=torch.device("cpu")), share_of(segments, num_rows)
    exchange.send(TRANSFER, share, rows[ME])
    return exchange.receive(TRANSFER, share).wait()


def draw(seed: int, *, once: bool) -> tuple[list[Segment], dict[int, torch.Tensor], int]:
    """Segments from three ranks, this one among them, their rows and the number of rows that arrive."""
    generator = random.Random(seed)
    lengths = [generator.randrange(1, 5) for _ in range(generator.randrange(1, 7))]
    num_rows = sum(lengths) if once else 8
    segments, start, used = [], 0, defaultdict(int)
    for length in lengths:
        source = generator.randrange(3)
        first = start if once else generator.randrange(num_rows - length + 1)
        segments.append(Segment(source, used[source] + (source == ME), ME, first, length))
        start, used[source] = start + length, used[source] + length
    generator.shuffle(segments)
    by_source = {source: sum(s.num_rows for s in segments if s.src_rank == source) for source in range(3)}
    rows = {source: torch.rand(count + 1, HIDDEN, dtype=torch.float64) for source, count in by_source.items()}
    return segments, rows, num_rows


def naive(segments: list[Segment], rows: dict[int, torch.Tensor], num_rows: int) -> torch.Tensor:
    """Row by row; a message holds its segments in the order in which they are listed."""
    out, taken = torch.zeros(num_rows, HIDDEN, dtype=torch.float64), defaultdict(int)
    for s in segments:
        for i in range(s.num_rows):
            row = s.src_row + i if s.src_rank == ME else taken[s.src_rank] + i
            out[s.dst_row + i] += rows[s.src_rank][row]
        taken[s.src_rank] += s.num_rows
    return out


@pytest.mark.parametrize("once", [True, False], ids=["each row once", "sums and gaps"])
@pytest.mark.parametrize("seed", range(40))
def test_rows_are_those_that_a_loop_over_them_gives(seed: int, once: bool) -> None:
    segments, rows, num_rows = draw(seed, once=once)
    assert torch.equal(receive(segments, rows, num_rows), naive(segments, rows, num_rows))


def test_nothing_arrives_as_zeros() -> None:
    assert torch.equal(receive([], {ME: torch.empty(0, HIDDEN)}, 2), torch.zeros(2, HIDDEN, dtype=torch.float64))


def test_rows_of_this_rank_are_never_handed_out_themselves() -> None:
    """A stage may change its input in place, and what it was made from is still needed for the backward."""
    mine = torch.ones(4, HIDDEN, dtype=torch.float64)
    receive([Segment(ME, 0, ME, 0, 4)], {ME: mine}, 4).zero_()
    assert torch.equal(mine, torch.ones(4, HIDDEN, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(40))
def test_where_each_row_comes_once_messages_land_in_what_is_handed_out(seed: int) -> None:
    """A copy less: those that are one run there are received where they stay."""
    segments, rows, num_rows = draw(seed, once=True)
    transport = Deliver(rows)
    exchange, share = Exchange(ME, transport, device=torch.device("cpu")), share_of(segments, num_rows)
    exchange.send(TRANSFER, share, rows[ME])
    arriving = exchange.receive(TRANSFER, share)
    if any(s.src_rank != ME for s in segments):
        out = arriving.wait()
        assert all(message.rows is out for message in transport._messages.values())
