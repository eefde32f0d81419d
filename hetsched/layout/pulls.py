"""Which rows of keys or of queries each rank pulls from which, where they land, and when a tile of them is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetsched.layout.tokens import IntArray, documents_of

TILE = 128
"""Rows of a key tile; every document starts at a multiple of it."""
CHUNK = 4096
"""Rows of a copy, at most; at head dim 128 and four heads 8 MiB, which take about 30 us."""
_MOST_HEADS = 4


def heads_of_part(num_kv_heads: int) -> int:
    """Heads that are pulled together, four or fewer: with more, the first programs would wait for more copies."""
    return next(heads for heads in range(_MOST_HEADS, 0, -1) if num_kv_heads % heads == 0)


@dataclass(frozen=True, slots=True, eq=False)
class PullPlan:
    """One rank's stage: of each document that is cut its own rows and those that it pulls, in their order.

    Documents that one rank has alone are not staged.

    Args:
        tokens: this rank's own and those that it pulls, ascending.
        places: of each its row of the stage, or, where it is not staged, its row among this rank's own behind them.
        own: int32 ``[2, num_staged]``: of this rank's own rows that are staged, the row and its place.
        num_rows: of the stage; alike on all ranks, a multiple of TILE and not 0.
        runs: int64 ``[num_runs, 4]``, source rank, its row, row here, number of rows, of the stages seen as
            ``[parts * num_rows, ...]``: in the order in which the kernel needs them.
        needs: int32 ``[num_rows / TILE, 2]``: how many runs must have landed before a tile of the first part is read,
            and how many more in each further part.
    """

    tokens: IntArray
    places: IntArray
    own: NDArray[np.int32]
    num_rows: int
    runs: IntArray
    needs: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of one rank's stage."""

    tokens: IntArray
    document: IntArray
    places: IntArray
    num_rows: int


def plan_pulls(met: Sequence[IntArray], bounds: IntArray, owner: IntArray, *, rank: int, num_parts: int) -> PullPlan:
    """The plan of one rank.

    Documents are pulled as the work tables visit them, longest first, each part by part; and of a part the last rows
    first, because the last queries are the longest work and see the keys nearest to them first.

    Args:
        met: for every rank its own tokens and those that it pulls, ascending.
        bounds: boundaries of the documents.
        owner: the rank that keeps each token.
        rank: whose plan.
        num_parts: of every stage; a row is pulled once for each.
    """
    is_cut = _cut(bounds, owner)
    stages = [_rows(tokens[is_cut[tokens]], bounds) for tokens in met]
    mine, num_rows = stages[rank], max(TILE, *(stage.num_rows for stage in stages))
    chunks = _chunks(stages, owner, rank)
    runs, needs = np.zeros((num_parts * len(chunks), 4), np.int64), np.zeros((num_rows // TILE, 2), np.int32)
    before = 0
    for document in _by_length(mine.document):
        pieces = chunks[chunks[:, 4] == document][::-1, :4]
        for part in range(num_parts):
            offset = part * num_rows
            first = before + part * len(pieces)
            runs[first : first + len(pieces)] = pieces + np.array([0, offset, offset, 0])
        for i, (_, _, place, length) in enumerate(pieces.tolist()):
            # later chunks lie before earlier ones: a tile of two waits for the later
            needs[place // TILE : (place + length - 1) // TILE + 1] = before + i + 1, len(pieces)
        before += num_parts * len(pieces)
    tokens, places = met[rank], np.zeros(len(met[rank]), np.int64)
    is_own, is_staged = owner[tokens] == rank, is_cut[tokens]
    places[is_own] = num_rows + np.arange(int(is_own.sum()))
    own_rows = places[is_own & is_staged] - num_rows
    places[is_staged] = mine.places
    own = np.stack([own_rows, places[is_own & is_staged]]).astype(np.int32)
    return PullPlan(tokens, places, own, num_rows, runs, needs)


def _cut(bounds: IntArray, owner: IntArray) -> NDArray[np.bool_]:
    """Of each token, whether its document is on several ranks."""
    if len(owner) == 0:
        return np.zeros(0, np.bool_)
    is_other = np.append(0, np.cumsum(np.diff(owner) != 0))
    lengths = np.diff(bounds)
    present = bounds[:-1][lengths > 0], bounds[1:][lengths > 0] - 1
    return np.repeat(is_other[present[0]] != is_other[present[1]], lengths[lengths > 0])


def _rows(tokens: IntArray, bounds: IntArray) -> _Rows:
    first = np.searchsorted(tokens, bounds)
    counts, document = np.diff(first), documents_of(tokens, bounds)
    padded = -(-counts // TILE) * TILE
    starts = np.cumsum(padded) - padded
    places = np.repeat(starts - first[:-1], counts) + np.arange(len(tokens))
    return _Rows(tokens, document, places, int(padded.sum()))


def _chunks(stages: Sequence[_Rows], owner: IntArray, rank: int) -> IntArray:
    """``[num_chunks, 5]``: source, its row, row here, number of rows, document; ascending in the row here."""
    mine = stages[rank]
    remote = np.flatnonzero(owner[mine.tokens] != rank)
    if len(remote) == 0:
        return np.zeros((0, 5), np.int64)
    tokens, place, document = mine.tokens[remote], mine.places[remote], mine.document[remote]
    source, row = owner[tokens], np.zeros(len(remote), np.int64)
    for other in np.unique(source).tolist():
        is_its = source == other
        row[is_its] = stages[other].places[np.searchsorted(stages[other].tokens, tokens[is_its])]
    is_new = (np.diff(source) != 0) | (np.diff(document) != 0) | (np.diff(place // CHUNK) != 0)
    is_new |= (np.diff(row) != 1) | (np.diff(place) != 1)
    first = np.append(0, np.flatnonzero(is_new) + 1)
    lengths = np.diff(np.append(first, len(remote)))
    return np.stack([source[first], row[first], place[first], lengths, document[first]], axis=1)


def _by_length(document: IntArray) -> list[int]:
    """Documents with the most rows first, as in the work tables."""
    counts = np.bincount(document)
    order: list[int] = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    return order
