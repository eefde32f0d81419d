"""What a route must do, written densely: a route is a matrix over local rows, and its properties are sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from hetsched.layout.routes import HolderRun, Segment, UseRun

IntArray = NDArray[np.int64]
POISON = 1_000_003  # in local rows that hold nothing: what reads one cannot come out right


@dataclass(frozen=True)
class Case:
    """One boundary: its uses, its two sides, and the hosts of the ranks if they matter."""

    uses: tuple[UseRun, ...]
    producers: tuple[HolderRun, ...]
    consumers: tuple[HolderRun, ...]
    host_of: tuple[int, ...] | None = None

    @cached_property
    def produced_of(self) -> dict[int, int]:
        """Use position -> produced row."""
        return {u.use_start + i: u.produced_start + i for u in self.uses for i in range(u.num_rows)}


class Side:
    """All local rows of one side, rank after rank, and the row of the side's axis that each holds (or -1)."""

    def __init__(self, runs: Sequence[HolderRun]) -> None:
        self.num_rows = {run.rank: 0 for run in runs}
        for run in runs:
            self.num_rows[run.rank] = max(self.num_rows[run.rank], run.row + run.num_rows)
        ends = np.cumsum([0, *self.num_rows.values()])
        self._offset: dict[int, int] = dict(zip(self.num_rows, ends[:-1].tolist(), strict=True))
        self.held = np.full(ends[-1], -1, np.int64)
        for run in runs:
            self.held[self.rows(run.rank, run.row, run.num_rows)] = run.start + np.arange(run.num_rows)
        self.ranks = np.repeat(list(self.num_rows), list(self.num_rows.values()))

    def rows(self, rank: int, row: int, num_rows: int) -> IntArray:
        """Where a rank's local rows are in ``held``."""
        assert 0 <= row <= row + num_rows <= self.num_rows.get(rank, 0), f"rank {rank} has no {num_rows} rows at {row}"
        return self._offset[rank] + row + np.arange(num_rows)

    @cached_property
    def holders(self) -> dict[int, list[int]]:
        """Row of the axis -> the ranks that hold it, ascending."""
        found: dict[int, list[int]] = {}
        for row, rank in sorted(zip(self.held.tolist(), self.ranks.tolist(), strict=True)):
            if row >= 0:
                found.setdefault(row, []).append(rank)
        return found


@lru_cache
def side_of(runs: tuple[HolderRun, ...]) -> Side:
    return Side(runs)


def matrix(route: Sequence[Segment], source: Side, target: Side) -> IntArray:
    """How often the route copies each source row (column) to each target row (row)."""
    copies = np.zeros((target.held.size, source.held.size), np.int64)
    for s in route:
        copies[target.rows(s.dst_rank, s.dst_row, s.num_rows), source.rows(s.src_rank, s.src_row, s.num_rows)] += 1
    return copies


def spread(values: IntArray, side: Side) -> IntArray:
    """The local rows of a side that holds ``values`` of its axis."""
    return np.where(side.held >= 0, values[side.held], POISON) if values.size else np.full_like(side.held, POISON)


def apply_forward(case: Case, route: Sequence[Segment], x: IntArray) -> IntArray:
    """The consumers' local rows after the produced rows ``x`` went along the route."""
    producers, consumers = side_of(case.producers), side_of(case.consumers)
    return matrix(route, producers, consumers) @ spread(x, producers)


def apply_backward(case: Case, route: Sequence[Segment], y: IntArray, *, partial: bool) -> IntArray:
    """The producers' local gradients after the use positions' gradients ``y`` went along the route."""
    producers, consumers = side_of(case.producers), side_of(case.consumers)
    local = spread(y, consumers)
    if partial:  # random parts that add up to y
        rng = np.random.default_rng(0)
        for position in set(consumers.held.tolist()) - {-1}:
            (rows,) = np.nonzero(consumers.held == position)
            parts = rng.integers(-99, 99, rows.size)
            parts[0] = y[position] - parts[1:].sum()
            local[rows] = parts
    return matrix(route, consumers, producers) @ local


def check_forward(case: Case, route: Sequence[Segment]) -> None:
    """Every consumer row arrives, once, from a rank that produced it, and nothing else is written."""
    producers, consumers = side_of(case.producers), side_of(case.consumers)
    x = np.arange(1, 2 + max([0, *producers.held.tolist()]), dtype=np.int64)
    produced_of = case.produced_of
    expected = [0 if use < 0 else x[produced_of[use]] for use in consumers.held.tolist()]
    np.testing.assert_array_equal(apply_forward(case, route, x), expected)
    np.testing.assert_array_equal(matrix(route, producers, consumers).sum(axis=1), consumers.held >= 0)
    assert all(s.num_rows > 0 for s in route), "an empty segment"


def check_backward(case: Case, route: Sequence[Segment], *, partial: bool) -> None:
    """Every producer row gets the sum over its consumed uses, addends ordered by (use position, rank)."""
    producers, consumers = side_of(case.producers), side_of(case.consumers)
    consumed = consumers.holders
    y = np.random.default_rng(1).integers(-99, 99, 1 + max([0, *case.produced_of]))
    expected = np.zeros(producers.held.size, np.int64)
    for use, produced in case.produced_of.items():
        if use in consumed:
            expected[producers.held == produced] += y[use]
    np.testing.assert_array_equal(apply_backward(case, route, y, partial=partial), expected)
    addends: dict[int, list[tuple[int, int]]] = {}
    for s in route:
        assert s.num_rows > 0, "an empty segment"
        used = consumers.held[consumers.rows(s.src_rank, s.src_row, s.num_rows)].tolist()
        for row, use in zip(producers.rows(s.dst_rank, s.dst_row, s.num_rows).tolist(), used, strict=True):
            addends.setdefault(row, []).append((use, s.src_rank))
    for found in addends.values():
        assert found == sorted(set(found)), "addends out of order or twice"


def num_crossing(route: Sequence[Segment], place_of: Sequence[int] | None = None) -> int:
    """Rows that go from one rank (or with ``place_of`` from one host) to another."""
    place = list(range(1000)) if place_of is None else place_of
    return sum(s.num_rows for s in route if place[s.src_rank] != place[s.dst_rank])


def least_forward(case: Case, place_of: Sequence[int] | None = None) -> int:
    """Consumer rows whose rank (host) does not produce them: each has to cross, once."""
    place = list(range(1000)) if place_of is None else place_of
    sources, produced_of = side_of(case.producers).holders, case.produced_of
    return sum(
        place[rank] not in {place[source] for source in sources[produced_of[use]]}
        for use, ranks in side_of(case.consumers).holders.items()
        for rank in ranks
    )


def least_backward(case: Case, *, partial: bool) -> int:
    """Addends of producer rows that lie on other ranks: all of them if partial, otherwise one a use."""
    consumed, produced_of = side_of(case.consumers).holders, case.produced_of
    least = 0
    for produced, ranks in side_of(case.producers).holders.items():
        for use in (u for u, p in produced_of.items() if p == produced and u in consumed):
            for rank in ranks:
                least += sum(h != rank for h in consumed[use]) if partial else rank not in consumed[use]
    return least
