"""Which rows of keys each rank pulls from which, where they land, and when a key tile is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetsched.layout.tokens import IntArray

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
    """One rank's stage: per document its own rows and those that it pulls, in the order of the sequence.

    Args:
        tokens: of the rows that are there when all copies have landed, ascending.
        places: the row of the stage of each, ascending.
        own_places: int32, those of this rank's own rows.
        num_rows: of the stage; alike on all ranks.
        runs: int64 ``[num_runs, 4]``, source rank, its row, row here, number of rows, of the stages seen as
            ``[parts * num_rows, ...]``: in the order in which the kernel needs them.
        needs: int32 ``[num_rows / TILE, 2]``: how many runs must have landed before a tile of the first part is read,
            and how many more in each further part.
    """

    tokens: IntArray
    places: IntArray
    own_places: NDArray[np.int32]
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


def plan_pulls(staged: Sequence[IntArray], bounds: IntArray, owner: IntArray, *, rank: int, num_parts: int) -> PullPlan:
    """The plan of one rank.

    Documents are pulled as the work tables visit them, longest first, each part by part; and of a part the last rows
    first, because the last queries are the longest work and see the keys nearest to them first.

    Args:
        staged: for every rank the tokens of its stage, its own among them, ascending.
        bounds: boundaries of the documents.
        owner: the rank that keeps each token.
        rank: whose plan.
        num_parts: of every stage; a row is pulled once for each.
    """
    stages = [_rows(tokens, bounds) for tokens in staged]
    mine, num_rows = stages[rank], max(stage.num_rows for stage in stages)
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
    own_places = mine.places[owner[mine.tokens] == rank].astype(np.int32)
    return PullPlan(mine.tokens, mine.places, own_places, num_rows, runs, needs)


def _rows(tokens: IntArray, bounds: IntArray) -> _Rows:
    document = np.searchsorted(bounds, tokens, side="right") - 1
    _, first, number, counts = np.unique(document, return_index=True, return_inverse=True, return_counts=True)
    padded = -(-counts // TILE) * TILE
    starts = np.cumsum(padded) - padded
    places = starts[number] + np.arange(len(tokens)) - first[number]
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
    present, counts = np.unique(document, return_counts=True)
    order: list[int] = present[np.argsort(-counts, kind="stable")].tolist()
    return order
