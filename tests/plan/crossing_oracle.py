"""What the crossing of a pair of layouts must do, row by row, and the least that it may send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hetsched.layout.crossing import Crossing, Side, cross
from hetsched.layout.grid import Grid
from tests.plan.every_layout import MAX_RANKS, Rows, SideLayout, consumer_rows, producer_rows

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """A producer's and a consumer's layout, each on some ranks, and the microbatch that crosses between them."""

    producer: SideLayout
    producer_ranks: tuple[int, ...]
    consumer: SideLayout
    consumer_ranks: tuple[int, ...]
    consumer_pp: int
    batch: str
    spread: str

    @property
    def sides(self) -> tuple[Side, Side]:
        made, wanted = self.producer, self.consumer
        return (
            Side("vision", Grid(made.degrees, self.producer_ranks), made.degrees.pp - 1, made.tokens),
            Side("llm", Grid(wanted.degrees, self.consumer_ranks), self.consumer_pp, wanted.tokens),
        )

    @property
    def rows(self) -> tuple[Rows, Rows]:
        return (
            producer_rows(self.producer, self.batch, self.spread),
            consumer_rows(self.consumer, self.batch, self.spread),
        )

    def cross(self) -> Crossing:
        (producer, consumer), (made, wanted) = self.sides, self.rows
        return cross(producer, made.held, consumer, wanted.held, has_backward=True)


class Local:
    """The rows of one side that take part, rank after rank.

    Args:
        ranks: those of its pipeline rank.
        numbers: of each of them, which produced rows it has or wants.
    """

    def __init__(self, ranks: Sequence[int], numbers: Sequence[IntArray]) -> None:
        self.numbers = np.concatenate(numbers)
        sizes = [len(of_rank) for of_rank in numbers]
        self.rank_of = np.repeat(ranks, sizes)
        self._sizes = np.full(2 * MAX_RANKS, -1)
        self._sizes[list(ranks)] = sizes
        self._first = np.zeros(2 * MAX_RANKS, np.int64)
        self._first[list(ranks)] = np.cumsum(sizes) - sizes

    def of(self, rank: int) -> slice:
        """Where the rows of a rank are; none if it is not on this side."""
        return slice(int(self._first[rank]), int(self._first[rank] + max(self._sizes[rank], 0)))

    def where(self, ranks: IntArray, rows: IntArray, counts: IntArray) -> IntArray | None:
        """Where the members of runs are; None if some are nowhere, or a run has none."""
        if (counts <= 0).any() or (rows < 0).any() or (rows + counts > self._sizes[ranks]).any():
            return None
        begins = self._first[ranks] + rows - (np.cumsum(counts) - counts)
        return np.repeat(begins, counts) + np.arange(counts.sum())


class Truth:
    """What is to happen when a microbatch crosses; produced rows have their number as value."""

    def __init__(self, pair: Pair) -> None:
        (producer, consumer), (made, wanted) = pair.sides, pair.rows
        ranks = consumer.grid.pipeline_rank(consumer.pp)
        self.made = Local(producer.grid.pipeline_rank(producer.pp), made.numbers)
        self.wanted = Local(ranks, wanted.numbers)
        self.produced = dict(zip(producer.grid.pipeline_rank(producer.pp), map(len, made.numbers), strict=True))
        self.index = dict(zip(ranks, wanted.places, strict=True))
        self._uses = np.concatenate(wanted.uses)
        self._is_partial = pair.consumer.tokens.has_partial_gradients
        self._num_numbers = 1 + int(max(self.made.numbers.max(initial=0), self.wanted.numbers.max(initial=0)))

    @cached_property
    def sent(self) -> IntArray:
        """The gradients that the consumer's ranks have of the rows they wanted: addends, or copies; all positive."""
        addend = 1 + self.wanted.rank_of if self._is_partial else 1
        return 104_729 * addend + 7919 * self._uses * self._uses

    @cached_property
    def returned(self) -> IntArray:
        """The gradients that are to reach the producer's ranks."""
        counted = np.ones(len(self._uses), bool) if self._is_partial else self.is_first_use
        addends = np.where(counted, self.sent, 0)
        return total(self.wanted.numbers, addends, self._num_numbers)[self.made.numbers]

    @cached_property
    def is_first_use(self) -> NDArray[np.bool_]:
        """Of every use one of the places where it is."""
        return _is_first(self._uses)

    @cached_property
    def is_first_row(self) -> NDArray[np.bool_]:
        """Of every produced row one of the places where it is."""
        return _is_first(self.made.numbers)

    @cached_property
    def whole(self) -> IntArray:
        """At each place of the consumer the whole gradient of its use."""
        num_uses = 1 + int(self._uses.max(initial=0))
        return total(self._uses, self.sent, num_uses)[self._uses] if self._is_partial else self.sent

    def is_adjoint(self, arrived: IntArray, returned: IntArray) -> bool:
        """Whether <Ax, y> = <x, A^T y> of the numbers x and the gradients y, each use and each row counted once."""
        use, row = self.is_first_use, self.is_first_row
        return bool(arrived[use] @ self.whole[use] == self.made.numbers[row] @ returned[row])

    def least(self) -> tuple[int, int]:
        """The rows that have to go to another rank, forward and backward, counted without any route."""
        has = self.made.rank_of * self._num_numbers + self.made.numbers
        needs = self.wanted.rank_of * self._num_numbers + self.wanted.numbers
        num_there = int(np.isin(needs, has).sum())
        addends = np.ones(len(needs), np.int64) if self._is_partial else self.is_first_use.astype(np.int64)
        num_addends = total(self.wanted.numbers, addends, self._num_numbers)[self.made.numbers]
        return len(needs) - num_there, int(num_addends.sum()) - num_there


def total(where: IntArray, addends: IntArray, size: int) -> IntArray:
    """The sum of the addends of each place."""
    return np.bincount(where, addends, minlength=size).astype(np.int64)


def _is_first(values: IntArray) -> NDArray[np.bool_]:
    found = np.zeros(len(values), bool)
    found[np.unique(values, return_index=True)[1]] = True
    return found


@dataclass(frozen=True)
class Outcome:
    """What came of a crossing.

    Args:
        arrived: ``[n, 2]``, for each place of the consumer the sum of the numbers that came, and how many came.
        returned: ``[m]``, for each place of the producer the sum of the gradients that came.
        num_sent: rows that went to another rank, forward and backward.
    """

    arrived: IntArray
    returned: IntArray
    num_sent: tuple[int, int]


def faults_of(truth: Truth, crossing: Crossing, outcome: Outcome) -> set[str]:
    """What is wrong: the ``local rows`` that are named, ``rows`` that arrive, ``gradients``, ``adjoint``, ``bytes``."""
    filled = {
        rank: [row + i for row, count in runs.tolist() for i in range(count)] for rank, runs in crossing.index.items()
    }
    wanted = {rank: rows.tolist() for rank, rows in truth.index.items()}
    arriving = [crossing.num_arriving(rank) for rank in wanted]
    (numbers, times), returned = outcome.arrived.T, outcome.returned
    is_fine = {
        "local rows": (crossing.produced, filled) == (truth.produced, wanted)
        and arriving == list(map(len, wanted.values())),
        "rows": bool((numbers == truth.wanted.numbers).all() and (times == 1).all()),
        "gradients": bool((returned == truth.returned).all()),
        "adjoint": truth.is_adjoint(numbers, returned),
        "bytes": outcome.num_sent == truth.least(),
    }
    return {name for name, fine in is_fine.items() if not fine}


def outcome_of(truth: Truth, crossing: Crossing) -> Outcome:
    """What comes of a crossing whose segments are carried out as they say."""
    ones = np.ones_like(truth.made.numbers)
    numbers = _carried(crossing.forward, truth.made, truth.wanted, truth.made.numbers)
    times = _carried(crossing.forward, truth.made, truth.wanted, ones)
    returned = _carried(crossing.backward, truth.wanted, truth.made, truth.sent)
    num_sent = [int(route[route[:, 0] != route[:, 2], 4].sum()) for route in (crossing.forward, crossing.backward)]
    return Outcome(np.stack([numbers, times], axis=1), returned, (num_sent[0], num_sent[1]))


def is_route(truth: Truth, crossing: Crossing) -> bool:
    """Whether all rows that the routes name exist."""
    ways = (crossing.forward, truth.made, truth.wanted), (crossing.backward, truth.wanted, truth.made)
    return all(_ends(*way) is not None for way in ways)


def _ends(route: IntArray, source: Local, target: Local) -> tuple[IntArray, IntArray] | None:
    """Where each row that a route names comes from and goes to; None if one is nowhere."""
    src_rank, src_row, dst_rank, dst_row, counts = route.T
    sent, reached = source.where(src_rank, src_row, counts), target.where(dst_rank, dst_row, counts)
    return None if sent is None or reached is None else (sent, reached)


def _carried(route: IntArray, source: Local, target: Local, values: IntArray) -> IntArray:
    """At each place of ``target`` the sum of the values that a route brings; -1 everywhere if it is no route."""
    ends = _ends(route, source, target)
    if ends is None:
        return np.full(len(target.numbers), -1)
    return total(ends[1], values[ends[0]], len(target.numbers))
