"""Rows that arrive: in their places where each comes once, summed in the route's order where several do."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch

from hetsched.layout.routes import Segment
from hetsched.runtime.exchange import Arriving

HIDDEN = 3
ME = 1


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
    found = Arriving(segments, rows, None, num_rows=num_rows, rank=ME).wait()
    assert torch.equal(found, naive(segments, rows, num_rows))


def test_nothing_arrives_as_zeros() -> None:
    rows = {ME: torch.empty(0, HIDDEN)}
    assert torch.equal(Arriving([], rows, None, num_rows=2, rank=ME).wait(), torch.zeros(2, HIDDEN))


def test_rows_of_this_rank_are_never_handed_out_themselves() -> None:
    """A stage may change its input in place, and what it was made from is still needed for the backward."""
    mine = torch.ones(4, HIDDEN)
    Arriving([Segment(ME, 0, ME, 0, 4)], {ME: mine}, None, num_rows=4, rank=ME).wait().zero_()
    assert torch.equal(mine, torch.ones(4, HIDDEN))
