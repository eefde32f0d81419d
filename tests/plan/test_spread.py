"""Who sees whose rows under context parallelism, against the mask token by token, and what is chosen from that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.layout.spread import Mask, Spread
from hetsched.layout.tokens import Group, IntArray, spread_zigzag
from hetsched.layout.ways import LONGEST_IN_CACHE, PAIRS_HIDING_A_ROW, Heads, choose_way, choose_way_back


def map_of(owner: list[int]) -> IntArray:
    """The map in which rank ``owner[t]`` keeps token t."""
    runs, rows = [], dict.fromkeys(owner, 0)
    for token, rank in enumerate(owner):
        runs.append((rank, rows[rank], token, 1))
        rows[rank] += 1
    return np.array(sorted(runs), np.int64).reshape(-1, 4)


@st.composite
def spreads(draw: Any) -> Spread:
    """Up to four documents, some empty, each token on any of up to three ranks."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    cp = draw(st.integers(1, 3))
    owner = draw(st.lists(st.integers(0, cp - 1), min_size=sum(lengths), max_size=sum(lengths)))
    window = draw(st.one_of(st.none(), st.integers(1, 5)))
    return Spread([0, *np.cumsum(lengths).tolist()], map_of(owner), cp, window)


def mask_of(spread: Spread) -> Mask:
    """Which token sees which."""
    total = int(spread.bounds[-1])
    document = np.repeat(np.arange(len(spread.bounds) - 1), np.diff(spread.bounds))
    distance = np.arange(total)[:, None] - np.arange(total)[None, :]
    is_near = distance < (total + 1 if spread.window is None else spread.window)
    return (document[:, None] == document[None, :]) & (distance >= 0) & is_near


@given(spreads())
def test_ranks_meet_the_keys_that_they_see_and_the_queries_that_see_theirs(spread: Spread) -> None:
    mask, has_cuts = mask_of(spread), False
    assert spread.num_pairs == mask.sum()
    for rank, own in enumerate(spread.held):
        is_own = np.isin(np.arange(len(mask)), own)
        assert np.array_equal(spread.met_keys[rank], np.flatnonzero(is_own | mask[own].any(0)))
        assert np.array_equal(spread.met_queries[rank], np.flatnonzero(is_own | mask[:, own].any(1)))
        assert (spread.owner[own] == rank).all()
        has_cuts |= bool(mask[own][:, ~is_own].any())
    assert spread.has_cuts == has_cuts


@given(spreads())
def test_intervals_of_keys_are_the_mask(spread: Spread) -> None:
    mask = mask_of(spread)
    for queries in spread.held:
        for keys in spread.held:
            seen, result = spread.seen_keys(queries, keys), np.zeros((len(queries), len(keys)), bool)
            for first, num_queries, first_key, num_keys in seen.spans.tolist():
                for row in range(first, first + num_queries):
                    assert seen.hi[row] <= num_keys
                    result[row, first_key + seen.lo[row] : first_key + seen.hi[row]] = True
            assert np.array_equal(result, mask[np.ix_(queries, keys)])


def dense(total: int, cp: int, window: int | None = None) -> Spread:
    return Spread([0, total], spread_zigzag(total, Group(cp)), cp, window)


def test_keys_are_pulled_where_ranks_can_and_otherwise_what_moves_less_is_taken() -> None:
    assert choose_way(dense(800, 4), Heads(8, 8, of_part=4)) == "pull"
    assert choose_way(dense(800, 4), Heads(8, 8)) == "ulysses"
    assert choose_way(dense(800, 2), Heads(8, 8)) == "ring"
    assert choose_way(dense(800, 4, window=10), Heads(8, 8)) == "ring"
    whole = Spread([0, 4, 8], map_of([0] * 4 + [1] * 4), 2)
    assert choose_way(whole, Heads(8, 8, of_part=4)) == "ring"


def test_queries_are_pulled_where_dq_hides_them_or_partial_gradients_are_more() -> None:
    assert choose_way_back(dense(800, 2), Heads(8, 8)) == "pull"
    assert choose_way_back(dense(800, 2), Heads(8, 4)) == "pull"
    assert choose_way_back(dense(800, 2), Heads(8, 2)) == "ring"
    # half of all pairs are seen, and 3/4 of the rows are pulled
    shortest = 2 * 3 * PAIRS_HIDING_A_ROW // 4
    assert choose_way_back(dense(shortest + 100, 2), Heads(8, 2)) == "pull"
    assert choose_way_back(dense(shortest - 100, 2), Heads(8, 2)) == "ring"
    assert choose_way_back(dense(LONGEST_IN_CACHE, 2), Heads(8, 2)) == "pull"
    assert choose_way_back(dense(LONGEST_IN_CACHE + 1, 2), Heads(8, 2)) == "ring"
    assert choose_way_back(dense(LONGEST_IN_CACHE + 1, 2), Heads(8, 4)) == "pull"


@pytest.mark.parametrize(("window", "owner", "message"), [(0, [0], "window=0"), (None, [3], "ranks 0 to 1")])
def test_an_empty_window_and_a_map_of_other_ranks_are_refused(
    window: int | None, owner: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Spread([0, 1], map_of(owner), 2, window)
