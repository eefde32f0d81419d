"""One microbatch's crossing of a boundary: from the shares and token layouts of both sides to routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hetsched.batch import Item
from hetsched.layout.grid import Grid
from hetsched.layout.held import Held
from hetsched.layout.routes import backward_route_array, forward_route_array
from hetsched.layout.shares import Share
from hetsched.layout.tokens import TokenLayout, check_map, positions_of, split_over_tp

IntArray = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Crossing:
    """Who copies which rows to whom.

    Args:
        forward, backward: the routes, ``[num_segments, 5]`` with the fields of Segment as columns; the backward adds
            up what arrives, and is empty if nobody needs it.
        index: for each rank of the consumer the runs of its local rows that arriving rows fill, in order: int64
            ``[num_runs, 2]``, local row and number of rows, ascending.
        produced: for each rank of the producer how many rows it has, and gets gradients of.
    """

    forward: IntArray
    backward: IntArray
    index: Mapping[int, IntArray]
    produced: Mapping[int, int]

    def num_arriving(self, rank: int) -> int:
        """How many rows a rank of the consumer receives."""
        return int(self.index[rank][:, 1].sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Crossing) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content[:2])

    @cached_property
    def _content(self) -> tuple[object, ...]:
        index = {rank: runs.tobytes() for rank, runs in self.index.items()}
        return self.forward.tobytes(), self.backward.tobytes(), index, dict(self.produced)


@dataclass(frozen=True)
class Side:
    """One end of a boundary.

    Args:
        module: its name.
        grid: its ranks.
        pp: the pipeline rank that holds the rows.
        layout: what its tp ranks keep of the rows.
    """

    module: str
    grid: Grid
    pp: int
    layout: TokenLayout = field(default_factory=TokenLayout)


def cross(
    producer: Side, produced: Sequence[Held], consumer: Side, consumed: Sequence[Held], *, has_backward: bool
) -> Crossing:
    """The crossing of the rows that ``consumed`` uses and ``produced`` makes; time grows with runs, not with rows.

    Args:
        producer, consumer: the two sides.
        produced, consumed: what each replica of a side holds, by its dp coordinate.
        has_backward: whether gradients go back.

    Raises:
        ValueError: a map of tokens does not fit its replica; the message names module and replica.
    """
    made = _Kept.of(producer, produced, [held.share.num_rows for held in produced])
    wanted = _Kept.of(consumer, consumed, [held.share.num_tokens for held in consumed])
    used = _Used.of(producer.module, [held.share for held in produced], [held.share for held in consumed])
    boundary = used.runs(), made.on_ranks(made.runs), wanted.on_ranks(used.taken_by(wanted.runs))
    backward: IntArray = np.empty((0, 5), np.int64)
    if has_backward:
        backward = backward_route_array(*boundary, partial=consumer.layout.has_partial_gradients)
    return Crossing(
        forward=forward_route_array(*boundary),
        backward=backward,
        index=wanted.by_rank(used.filled_in(wanted.runs, num_holders=len(wanted.ranks))),
        produced=made.by_rank(made.num_rows().tolist()),
    )


@dataclass(frozen=True, eq=False)
class _Kept:
    """Who keeps the rows of a side, which are its replicas' one after the other.

    Args:
        runs: a map of tokens to holders; a holder is a rank, or the tp ranks that keep the same rows.
        ranks: ``[num_holders, num_copies]``.
    """

    runs: IntArray
    ranks: IntArray

    @classmethod
    def of(cls, side: Side, held: Sequence[Held], lengths: Sequence[int]) -> _Kept:
        d = side.grid.layout
        maps = [_map_of(side, dp, tokens=replica.tokens, num_rows=lengths[dp]) for dp, replica in enumerate(held)]
        replica_of = np.repeat(np.arange(d.dp), [len(tokens) for tokens in maps])
        runs = np.concatenate(maps)
        runs[:, 0] += replica_of * d.cp
        runs[:, 2] += np.cumsum([0, *lengths])[replica_of]
        num_copies = 1 if side.layout.is_sequence_parallel else d.tp
        if num_copies != d.tp:
            runs = split_over_tp(runs, d.tp)
        return cls(runs, np.reshape(side.grid.pipeline_rank(side.pp), (-1, num_copies)))

    def num_rows(self) -> IntArray:
        """How many each holder keeps."""
        return np.bincount(self.runs[:, 0], self.runs[:, 3], minlength=len(self.ranks)).astype(np.int64)

    def on_ranks(self, runs: IntArray) -> IntArray:
        """The HolderRuns of ranks, from those of holders."""
        num_copies = self.ranks.shape[1]
        result = np.repeat(runs, num_copies, axis=0)
        result[:, 0] = self.ranks[runs[:, 0]].ravel()
        return result

    def by_rank(self, of_holder: Sequence[T]) -> dict[int, T]:
        """What each rank has, from what each holder has."""
        return {rank: has for ranks, has in zip(self.ranks.tolist(), of_holder, strict=True) for rank in ranks}


@dataclass(frozen=True, eq=False)
class _Used:
    """The uses of produced rows, each a run: at which position of the consumer, of which rows, and how many.

    Positions are those of all replicas' sequences, one after the other; use positions count only what is filled.
    """

    position: IntArray
    produced: IntArray
    counts: IntArray

    @classmethod
    def of(cls, module: str, produced: Sequence[Share], consumed: Sequence[Share]) -> _Used:
        produced_at, first = _produced_at(produced), 0
        columns: tuple[list[int], list[int], list[int]] = [], [], []
        position, rows, counts = columns
        for share in consumed:
            for row, placeholder in share.placeholders(module):
                item = placeholder.item
                if item.num_rows:
                    position.append(first + row)
                    rows.append(produced_at[item.key])
                    counts.append(item.num_rows)
            first += share.num_tokens
        return cls(*np.array(columns, np.int64))

    @cached_property
    def starts(self) -> IntArray:
        """The use position where each use begins."""
        return np.cumsum(self.counts) - self.counts

    def runs(self) -> IntArray:
        """As UseRuns."""
        return np.stack([self.starts, self.produced, self.counts], axis=1)

    def taken_by(self, tokens: IntArray) -> IntArray:
        """The HolderRuns over use positions of holders that keep ``tokens``; they receive what they need, in order."""
        if not self.counts.size:
            return tokens[:0]
        holder, _, start, num_rows = tokens.T
        first, last = self._before(start), self._before(start + num_rows)
        counts = last - first
        arrived = np.cumsum(counts) - counts  # of all holders; of one, less what arrived before its first run
        rows = arrived - arrived[np.searchsorted(holder, holder)]
        return np.stack([holder, rows, first, counts], axis=1)[counts > 0]

    def filled_in(self, tokens: IntArray, *, num_holders: int) -> list[IntArray]:
        """For each holder the runs of its local rows, ``[n, 2]``, that uses fill."""
        holder, row, start, num_rows = tokens.T
        first = np.searchsorted(self.position + self.counts, start, side="right")
        num_uses = np.maximum(np.searchsorted(self.position, start + num_rows) - first, 0)
        use, run = positions_of(first, num_uses), np.repeat(np.arange(len(tokens)), num_uses)
        begins = np.maximum(self.position[use], start[run])
        ends = np.minimum(self.position[use] + self.counts[use], (start + num_rows)[run])
        filled = np.stack([row[run] + begins - start[run], ends - begins], axis=1)
        return np.split(filled, np.searchsorted(holder[run], np.arange(1, num_holders)))

    def _before(self, position: IntArray) -> IntArray:
        """How many positions before these are filled."""
        use = np.maximum(np.searchsorted(self.position, position, side="right") - 1, 0)
        return self.starts[use] + np.clip(position - self.position[use], 0, self.counts[use])


def _produced_at(produced: Sequence[Share]) -> dict[int, int]:
    """Where the rows of each item begin among all produced rows."""
    starts, end = {}, 0
    for share in produced:
        for item in share.members:
            assert isinstance(item, Item)
            starts[item.key] = end
            end += item.num_rows
    return starts


def _map_of(side: Side, dp: int, *, tokens: IntArray | None, num_rows: int) -> IntArray:
    """The map of tokens of one replica, found sound."""
    cp = side.grid.layout.cp
    if tokens is None and cp == 1:
        return np.array([[0, 0, 0, num_rows]], np.int64)
    try:
        if tokens is None:
            raise ValueError(f"none was given, but there are {cp} context-parallel ranks")
        check_map(tokens, num_ranks=cp, num_tokens=num_rows)
    except ValueError as error:
        raise ValueError(f"module {side.module}, replica {dp}, map of tokens: {error}") from None
    return tokens
