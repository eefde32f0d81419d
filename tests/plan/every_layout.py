"""Every way in which up to eight ranks can hold the rows of one side of a boundary, row by row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hetsched.batch import Item, Placeholder, Sample
from hetsched.layout.dispatch import plan_tokens
from hetsched.layout.grid import Layout
from hetsched.layout.held import Held
from hetsched.layout.shares import Share
from hetsched.layout.tokens import Group, TokenLayout, spread_zigzag

IntArray = NDArray[np.int64]
MAX_RANKS = 8


@dataclass(frozen=True)
class SideLayout:
    """Degrees of parallelism, and what tp ranks keep."""

    degrees: Layout
    tokens: TokenLayout

    @property
    def num_ranks(self) -> int:
        return self.degrees.num_ranks


def side_layouts(*, has_partial_gradients: Sequence[bool] = (False,)) -> list[SideLayout]:
    """All over up to eight ranks; without tp, rows are neither split over it nor in several places."""
    found = []
    degrees = range(1, MAX_RANKS + 1)
    for tp, cp, dp, pp in itertools.product(degrees, repeat=4):
        if tp * cp * dp * pp <= MAX_RANKS:
            replicated = [TokenLayout(False, is_partial) for is_partial in has_partial_gradients]
            kinds = [*replicated, TokenLayout(is_sequence_parallel=True)] if tp > 1 else [TokenLayout()]
            found += [SideLayout(Layout(tp=tp, cp=cp, dp=dp, pp=pp), kind) for kind in kinds]
    return found


@dataclass(frozen=True)
class Batch:
    """The items of one microbatch and their uses.

    Args:
        items: rows of each item, by key.
        samples: for each sample the items that it uses, one after the other with some text between.
    """

    items: tuple[int, ...]
    samples: tuple[tuple[int, ...], ...]

    def item(self, key: int) -> Item:
        return Item("vision", key, num_inputs=4 * self.items[key], num_rows=self.items[key])

    def sample(self, index: int) -> Sample:
        end, placeholders = index % 2, []
        for place, key in enumerate(self.samples[index]):
            placeholders.append(Placeholder(self.item(key), end))
            end += self.items[key] + (index + place) % 3
        return Sample(index, end + 1, 1, tuple(placeholders))


BATCHES = {
    "ragged, repeated and empty items": Batch((3, 0, 5, 1, 4, 7, 2), ((2, 0, 2), (1, 3), (), (4, 1, 2), (5, 3), (3,))),
    "one item everywhere": Batch((6, 2), ((0,), (0, 0), (0,), (0,), (0,))),
    "fewer items than ranks": Batch((9,), ((), (0,))),
    "more items than ranks": Batch(
        (1, 2, 3, 2, 1, 4, 1, 3, 2, 5), ((0, 1, 2), (3, 4), (5, 6), (7,), (8,), (9,), (0,), (9, 1))
    ),
    "no items": Batch((), ((), ())),
}
SPREADS = ("zigzag", "documents", "scattered")


def spread_over_cp(spread: str, cp: int, lengths: Sequence[int]) -> IntArray | None:
    """A map of tokens of the named kind; None where one rank has all."""
    num_tokens = sum(lengths)
    if cp == 1:
        return None
    if spread == "zigzag":
        return spread_zigzag(num_tokens, Group(cp))
    if spread == "documents":
        return plan_tokens([0, *itertools.accumulate(lengths)], cp=cp, quadratic=1, linear=0, shortest_cut=6)
    random = np.random.default_rng(num_tokens)
    cuts = np.unique(np.r_[0, random.integers(0, num_tokens + 1, 3 * cp), num_tokens])
    pieces = random.permutation([*itertools.pairwise(cuts.tolist())])
    runs, next_row = [], [0] * cp
    for (start, end), rank in zip(pieces, random.integers(0, cp, len(pieces)).tolist(), strict=True):
        runs.append((rank, next_row[rank], start, end - start))
        next_row[rank] += end - start
    return np.array(sorted(runs), np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class Rows:
    """What one side holds: the shares of its replicas, and the local rows of each rank of a pipeline rank.

    Args:
        held: for each replica its share and its map of tokens.
        numbers: for each rank, of the local rows that are or become produced rows, the numbers of those, from 1.
        places: for each rank which of its local rows these are.
        uses: for each rank of a consumer, which uses of them they are.
    """

    held: tuple[Held, ...]
    numbers: tuple[IntArray, ...]
    places: tuple[IntArray, ...]
    uses: tuple[IntArray, ...] = ()


@lru_cache(None)
def producer_rows(layout: SideLayout, batch_name: str, spread: str) -> Rows:
    """Items go to replicas in some order, used or not."""
    batch, dp = BATCHES[batch_name], layout.degrees.dp
    first = np.cumsum([1, *batch.items]).tolist()
    held, numbers = [], []
    for replica in range(dp):
        items = [batch.item(key) for key in range(len(batch.items)) if 5 * key % 7 % dp == replica]
        lengths = [item.num_rows for item in items]
        share = Share(tuple(items), tuple(item.num_inputs for item in items), sum(lengths))
        held.append(Held(share, spread_over_cp(spread, layout.degrees.cp, lengths)))
        made = [first[item.key] + i for item in items for i in range(item.num_rows)]
        numbers += [np.array([made[at] for at in kept], np.int64) for kept in local_rows(layout, held[-1], len(made))]
    return Rows(tuple(held), tuple(numbers), tuple(np.arange(len(of_rank)) for of_rank in numbers))


@lru_cache(None)
def consumer_rows(layout: SideLayout, batch_name: str, spread: str) -> Rows:
    """Samples go to replicas in some order."""
    batch, dp = BATCHES[batch_name], layout.degrees.dp
    first = np.cumsum([1, *batch.items]).tolist()
    held, use = [], itertools.count()
    numbers: list[IntArray] = []
    places: list[IntArray] = []
    uses: list[IntArray] = []
    for replica in range(dp):
        samples = [batch.sample(index) for index in range(len(batch.samples)) if 3 * index % 5 % dp == replica]
        lengths = tuple(sample.num_tokens for sample in samples)
        share = Share(tuple(samples), lengths, sum(lengths))
        held.append(Held(share, spread_over_cp(spread, layout.degrees.cp, lengths)))
        sequence: list[tuple[int, int]] = []  # number of the row and of the use; 0 for text
        for sample in samples:
            of_sample = [(0, 0)] * sample.num_tokens
            for p in sample.placeholders:
                for i in range(p.item.num_rows):
                    of_sample[p.start + i] = (first[p.item.key] + i, next(use))
            sequence += of_sample
        for kept in local_rows(layout, held[-1], len(sequence)):
            filled = [(row, *sequence[at]) for row, at in enumerate(kept) if sequence[at][0]]
            columns = np.array(filled, np.int64).reshape(-1, 3).T
            for of_all, of_rank in zip((places, numbers, uses), columns, strict=True):
                of_all.append(of_rank)
    return Rows(tuple(held), tuple(numbers), tuple(places), tuple(uses))


def local_rows(layout: SideLayout, held: Held, num_rows: int) -> list[list[int]]:
    """For each rank of a replica, tp fastest, which of the replica's rows its local rows are; token by token."""
    tp, cp = layout.degrees.tp, layout.degrees.cp
    kept: list[dict[int, int]] = [{} for _ in range(cp)]
    runs = [[0, 0, 0, num_rows]] if held.tokens is None else held.tokens.tolist()
    for rank, row, start, count in runs:
        kept[rank].update((row + i, start + i) for i in range(count))
    result = []
    for of_rank in kept:
        rows = [of_rank[row] for row in range(len(of_rank))]
        cuts = [len(rows) * s // tp for s in range(tp + 1)]
        result += [rows[a:b] if layout.tokens.is_sequence_parallel else rows for a, b in itertools.pairwise(cuts)]
    return result
