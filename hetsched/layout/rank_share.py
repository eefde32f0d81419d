"""What one rank does of a route: the messages that it sends and receives, and where their rows land.

The rows that arrive on a rank over one route lie in a *room*. Where none of them comes twice, as in every forward, the
room is what arrives: each run lies where it belongs, between the rows that the rank has itself. Where rows are added
up, the room holds the messages one after the other, by source. Both follow from the route alone, so whoever sends a
row knows its place at the other end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Runs = tuple[tuple[int, int], ...]
"""First row and number of rows of each."""


class Piece(NamedTuple):
    """Rows of a message: where they lie, where they go, and how many."""

    row: int
    to_row: int
    num_rows: int


class Addend(NamedTuple):
    """Rows to be added: of which rank, where they lie (in the room, or among own rows), to which, and how many."""

    source: int
    row: int
    to_row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that a rank sends.

    Args:
        runs: its rows here, in the order of the message.
        pieces: the same rows, and their places in the receiver's room.
    """

    runs: Runs
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class RankShare:
    """One rank's part of a route.

    Args:
        sends: by receiving rank, never this one.
        receives: by sending rank, never this one: the message's rows in the room, in its order.
        own: rows that stay: where they lie, and where they belong.
        sent_rows: of all messages that are sent.
        num_rows: that arrive.
        room_rows: rows of the room.
        gaps: rows that nobody sends, which are zeros; none where rows are added up.
        addends: what is added up, in rounds one after the other; a round has no row twice. None where the room is what
            arrives.
    """

    sends: Mapping[int, Outgoing] = field(default_factory=dict)
    receives: Mapping[int, Runs] = field(default_factory=dict)
    own: tuple[Piece, ...] = ()
    sent_rows: int = 0
    num_rows: int = 0
    room_rows: int = 0
    gaps: Runs = ()
    addends: tuple[tuple[Addend, ...], ...] | None = None


def rank_share(route: IntArray, rank: int, *, num_rows: int) -> RankShare:
    """The part of a route that ``rank`` carries out.

    Args:
        route: ``[num_segments, 5]``, with the fields of Segment as columns; of each rank to which ``rank`` sends all
            segments that end there, in the order in which they are summed.
        rank: whose part.
        num_rows: that arrive on it, covered by the route or not.
    """
    here = (route[:, 0] == rank) | (route[:, 2] == rank)
    route = route[np.isin(route[:, 2], np.append(route[here, 2], rank))]
    places, adds_up = _room_rows(route)
    mine = (route[:, 0] == rank) | (route[:, 2] == rank)
    rows = np.column_stack([route[mine], places[mine]]).tolist()
    sends: dict[int, list[Piece]] = {}
    receives: dict[int, list[tuple[int, int]]] = {}
    own: list[Piece] = []
    for source, row, destination, to_row, count, place in rows:
        if source != rank:
            receives.setdefault(source, []).append((place, count))
        elif destination != rank:
            sends.setdefault(destination, []).append(Piece(row, place, count))
        else:
            own.append(Piece(row, to_row, count))
    arriving = [row for row in rows if row[2] == rank]
    is_sum = rank in adds_up
    added = [Addend(r[0], r[1] if r[0] == rank else r[5], r[3], r[4]) for r in arriving] if is_sum else []
    return RankShare(
        sends={peer: outgoing(pieces) for peer, pieces in sends.items()},
        receives={peer: joined(runs) for peer, runs in receives.items()},
        own=tuple(own),
        sent_rows=sum(piece.num_rows for pieces in sends.values() for piece in pieces),
        num_rows=num_rows,
        room_rows=sum(count for runs in receives.values() for _, count in runs) if is_sum else num_rows,
        gaps=() if is_sum else _gaps(((row[3], row[4]) for row in arriving), num_rows),
        addends=in_rounds(added) if is_sum else None,
    )


def in_rounds(addends: Sequence[Addend]) -> tuple[tuple[Addend, ...], ...]:
    """Addends as rounds, so that each row is added to in the same order as one after the other.

    Args:
        addends: in order; where they overlap in part they are cut.
    """
    source, row, to_row, count = np.array(addends, np.int64).reshape(-1, 4).T
    bounds = np.unique(np.concatenate([to_row, to_row + count]))
    firsts = np.searchsorted(bounds, to_row)
    num_cuts = np.searchsorted(bounds, to_row + count) - firsts
    whose = np.repeat(np.arange(len(source)), num_cuts)
    # The number of each cut's stretch between two bounds, and of those before it that lie on the same one.
    stretch = np.arange(len(whose)) + np.repeat(firsts - (np.cumsum(num_cuts) - num_cuts), num_cuts)
    order = np.argsort(stretch, kind="stable")
    begins = np.searchsorted(stretch[order], stretch[order])
    number = np.empty_like(order)
    number[order] = np.arange(len(order)) - begins
    start, size = bounds[stretch], bounds[stretch + 1] - bounds[stretch]
    cut = np.column_stack([source[whose], row[whose] + start - to_row[whose], start, size])
    return tuple(tuple(Addend(*of) for of in cut[number == of_round].tolist()) for of_round in range(number.max() + 1))


def _room_rows(route: IntArray) -> tuple[IntArray, frozenset[int]]:
    """For each segment the row of its destination's room, and the ranks on which rows are added up."""
    in_rows = route[np.lexsort((route[:, 3], route[:, 2]))]
    begins, ends = in_rows[1:, 3], (in_rows[:, 3] + in_rows[:, 4])[:-1]
    twice = (in_rows[1:, 2] == in_rows[:-1, 2]) & (begins < ends)
    adds_up = np.unique(in_rows[1:, 2][twice])
    places = route[:, 3].copy()
    sent = np.flatnonzero(np.isin(route[:, 2], adds_up) & (route[:, 0] != route[:, 2]))
    sent = sent[np.lexsort((route[sent, 0], route[sent, 2]))]
    counts, destinations = route[sent, 4], route[sent, 2]
    starts = np.cumsum(counts) - counts
    places[sent] = starts - starts[np.searchsorted(destinations, destinations)]
    return places, frozenset(adds_up.tolist())


def whole(source: int, destination: int, num_rows: int, *, rank: int) -> RankShare:
    """``num_rows`` rows that one rank sends another as they are, seen from ``rank``, one of the two."""
    if num_rows == 0:
        return RankShare()
    if rank == source:
        message = Outgoing(((0, num_rows),), (Piece(0, 0, num_rows),))
        return RankShare(sends={destination: message}, sent_rows=num_rows)
    return RankShare(receives={source: ((0, num_rows),)}, num_rows=num_rows, room_rows=num_rows)


def outgoing(pieces: Sequence[Piece]) -> Outgoing:
    """The message of these pieces, where those that go on where the one before ends are one with it."""
    out: list[Piece] = []
    for piece in pieces:
        if out and (out[-1].row + out[-1].num_rows, out[-1].to_row + out[-1].num_rows) == piece[:2]:
            out[-1] = out[-1]._replace(num_rows=out[-1].num_rows + piece.num_rows)
        else:
            out.append(piece)
    return Outgoing(joined((piece.row, piece.num_rows) for piece in pieces), tuple(out))


def joined(runs: Iterable[tuple[int, int]]) -> Runs:
    """Runs (first row, number of rows) where each that goes on where the one before ends is one with it."""
    out: list[tuple[int, int]] = []
    for first, count in runs:
        if out and sum(out[-1]) == first:
            out[-1] = out[-1][0], out[-1][1] + count
        else:
            out.append((first, count))
    return tuple(out)


def _gaps(covered: Iterable[tuple[int, int]], num_rows: int) -> Runs:
    """The runs of rows that none of ``covered`` has."""
    gaps, end = [], 0
    for first, count in [*sorted(covered), (num_rows, 0)]:
        if first > end:
            gaps.append((end, first - end))
        end = first + count
    return tuple(gaps)
