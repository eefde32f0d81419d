"""What ranks do of a route: rows put into rooms are all there, once each, and add up to what the route says."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetsched.layout.rank_share import (
    Addend,
    Outgoing,
    Piece,
    RankShare,
    in_rounds,
    joined,
    outgoing,
    rank_share,
    whole,
)

IntArray = NDArray[np.int64]
RANKS = 4
UNWRITTEN = -1


@st.composite
def routes(draw: st.DrawFn) -> tuple[IntArray, list[int]]:
    """Segments between ranks, and how many rows arrive on each: with gaps, in any order, and on some ranks twice."""
    segments, num_rows = [], []
    for rank in range(RANKS):
        cuts = sorted(draw(st.lists(st.integers(0, 12), max_size=6)))
        num_rows.append(max(cuts, default=0) + draw(st.integers(0, 2)))
        runs = [(first, end - first) for first, end in pairwise(cuts) if first < end and draw(st.booleans())]
        if draw(st.booleans()):
            runs += [(first, 1) for first, _ in runs[:2]]
        segments += [(draw(st.integers(0, RANKS - 1)), draw(st.integers(0, 9)), rank, *run) for run in runs]
    order = draw(st.permutations(range(len(segments))))
    return np.array([segments[i] for i in order], np.int64).reshape(-1, 5), num_rows


def rows_of(rank: int) -> IntArray:
    """What a rank has: numbers that tell from their sum which were added."""
    return 3 ** (5 * rank % 7) * 1000 + np.arange(30) * (rank + 1)


def truth(route: IntArray, rank: int, num_rows: int) -> IntArray:
    out = np.zeros(num_rows, np.int64)
    for source, row, destination, to_row, count in route.tolist():
        if destination == rank:
            out[to_row : to_row + count] += rows_of(source)[row : row + count]
    return out


def carried(shares: list[RankShare], rank: int) -> IntArray:
    """What arrives on a rank whose peers put their pieces into its room."""
    share = shares[rank]
    room = np.full(share.room_rows, UNWRITTEN)
    for peer, of in enumerate(shares):
        sent = of.sends.get(rank, Outgoing((), ()))
        for piece in sent.pieces:
            part = room[piece.to_row : piece.to_row + piece.num_rows]
            assert (part == UNWRITTEN).all(), "two messages have one place"
            part[:] = rows_of(peer)[piece.row : piece.row + piece.num_rows]
    own = rows_of(rank)
    if share.addends is None:
        for piece in share.own:
            room[piece.to_row : piece.to_row + piece.num_rows] = own[piece.row : piece.row + piece.num_rows]
        for first, count in share.gaps:
            assert (room[first : first + count] == UNWRITTEN).all()
            room[first : first + count] = 0
        return room
    out = np.zeros(share.num_rows, np.int64)
    for addends in share.addends:
        seen: set[int] = set()
        for addend in addends:
            to = range(addend.to_row, addend.to_row + addend.num_rows)
            assert not seen & set(to), "a round has a row twice"
            seen |= set(to)
            source = own if addend.source == rank else room
            out[to] += source[addend.row : addend.row + addend.num_rows]
    return out


@given(routes())
@settings(max_examples=300)
def test_every_rank_gets_what_the_route_says(case: tuple[IntArray, list[int]]) -> None:
    route, num_rows = case
    shares = [rank_share(route, rank, num_rows=num_rows[rank]) for rank in range(RANKS)]
    for rank in range(RANKS):
        assert carried(shares, rank).tolist() == truth(route, rank, num_rows[rank]).tolist()


@given(routes())
def test_both_ends_of_a_message_agree_on_its_rows(case: tuple[IntArray, list[int]]) -> None:
    route, num_rows = case
    shares = [rank_share(route, rank, num_rows=num_rows[rank]) for rank in range(RANKS)]
    for rank, share in enumerate(shares):
        assert rank not in share.sends and rank not in share.receives
        assert {peer for peer in range(RANKS) if rank in shares[peer].sends} == set(share.receives)
        for peer, runs in share.receives.items():
            sent = shares[peer].sends[rank]
            landing = [row for p in sent.pieces for row in range(p.to_row, p.to_row + p.num_rows)]
            leaving = [row for p in sent.pieces for row in range(p.row, p.row + p.num_rows)]
            assert landing == [row for first, count in runs for row in range(first, first + count)]
            assert leaving == [row for first, count in sent.runs for row in range(first, first + count)]


@given(routes())
def test_rows_are_added_up_only_where_one_comes_twice(case: tuple[IntArray, list[int]]) -> None:
    route, num_rows = case
    for rank in range(RANKS):
        times = np.zeros(num_rows[rank], np.int64)
        for _, _, _, first, count in route[route[:, 2] == rank].tolist():
            times[first : first + count] += 1
        assert (rank_share(route, rank, num_rows=num_rows[rank]).addends is not None) == bool((times > 1).any())


def test_a_route_cut_to_what_a_rank_sends_and_receives_needs_all_that_its_receivers_get() -> None:
    """Rank 0 sends rank 2 one row, and rank 1 another to the same place: only both together say that they add up."""
    route = np.array([[0, 0, 2, 0, 1], [1, 0, 2, 0, 1], [1, 5, 3, 0, 1]])
    assert rank_share(route, 0, num_rows=0).sends == {2: Outgoing(((0, 1),), (Piece(0, 0, 1),))}
    assert rank_share(route, 1, num_rows=0).sends[2].pieces == (Piece(0, 1, 1),)


def test_runs_and_pieces_that_go_on_are_one() -> None:
    assert joined([(0, 2), (2, 3), (6, 1), (5, 1)]) == ((0, 5), (6, 1), (5, 1))
    message = outgoing([Piece(0, 10, 2), Piece(2, 12, 1), Piece(3, 20, 4)])
    assert message == Outgoing(((0, 7),), (Piece(0, 10, 3), Piece(3, 20, 4)))


@pytest.mark.parametrize("num_rows", [0, 5])
def test_rows_between_stages_go_as_they_are(num_rows: int) -> None:
    route = np.array([[3, 0, 1, 0, num_rows]] if num_rows else [], np.int64).reshape(-1, 5)
    assert whole(3, 1, num_rows, rank=3) == rank_share(route, 3, num_rows=0)
    assert whole(3, 1, num_rows, rank=1) == rank_share(route, 1, num_rows=num_rows)


def addends(draw: st.DrawFn) -> list[Addend]:
    sizes = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 8)), min_size=1, max_size=12))
    return [Addend(source, 100 * i, to_row, count) for i, (source, to_row, count) in enumerate(sizes)]


@given(st.composite(addends)())
@settings(max_examples=300)
def test_rounds_add_to_each_row_what_was_to_be_added_in_the_same_order(every: list[Addend]) -> None:
    def by_row(parts: Iterable[Addend]) -> dict[int, list[tuple[int, int]]]:
        found: dict[int, list[tuple[int, int]]] = {}
        for of in parts:
            for i in range(of.num_rows):
                found.setdefault(of.to_row + i, []).append((of.source, of.row + i))
        return found

    rounds = in_rounds(every)
    assert by_row(of for addends in rounds for of in addends) == by_row(every)
    for of_round in rounds:
        assert all(len(of) == 1 for of in by_row(of_round).values())
    assert len(rounds) == max(len(of) for of in by_row(every).values()), "more rounds than a row has addends"


def test_addends_that_lie_on_each_other_stay_whole() -> None:
    every = [Addend(0, 0, 4, 3), Addend(1, 0, 0, 4), Addend(2, 9, 4, 3)]
    assert in_rounds(every) == ((every[0], every[1]), (every[2],))
