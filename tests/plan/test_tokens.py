"""Maps of tokens to ranks: every token once, rows without gaps, work level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.layout.dispatch import plan_tokens
from hetsched.layout.tokens import Group, IntArray, check_map, split_over_tp, spread_zigzag, tokens_of
from tests.plan.token_maps import assert_is_a_partition, tokens_of_cp


@pytest.mark.parametrize(("cp", "sp"), [*itertools.product((1, 2, 3, 4, 8), (1, 2, 3))])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 7, 16, 63, 1000])
def test_zigzag_levels_causal_work_for_any_length(cp: int, sp: int, num_tokens: int) -> None:
    group = Group(cp, sp)
    runs = spread_zigzag(num_tokens, group)
    assert_is_a_partition(runs, num_tokens, group)
    counts = [len(tokens_of(runs, rank)) for rank in range(cp * sp)]
    by_cp = [len(tokens_of_cp(runs, c, group)) for c in range(cp)]
    assert max(by_cp) - min(by_cp) <= 2
    for c in range(cp):
        mine = counts[c * sp : (c + 1) * sp]
        assert max(mine) - min(mine) <= 1
    if num_tokens == 1000:
        work = [sum(t + 1 for t in tokens_of_cp(runs, c, group)) for c in range(cp)]
        assert max(work) <= 1.02 * min(work)


def test_zigzag_by_hand() -> None:
    runs = spread_zigzag(8, Group(cp=2))
    assert tokens_of(runs, 0).tolist() == [0, 1, 6, 7]
    assert tokens_of(runs, 1).tolist() == [2, 3, 4, 5]
    runs = spread_zigzag(8, Group(cp=2, sp=2))
    assert [tokens_of(runs, rank).tolist() for rank in range(4)] == [[0, 1], [6, 7], [2, 3], [4, 5]]


def test_bad_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="cp, sp"):
        spread_zigzag(4, Group(cp=0))
    with pytest.raises(ValueError, match="num_tokens"):
        spread_zigzag(-1, Group())


def of_documents(cu_seqlens: list[int], cp: int, shortest_cut: int, *, sp: int = 1) -> IntArray:
    return plan_tokens(cu_seqlens, cp=cp, sp=sp, quadratic=1, linear=0, shortest_cut=shortest_cut)


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 5), st.integers(1, 4), st.integers(1, 50))
def test_a_map_that_is_split_over_tp_is_the_map_of_both(
    lengths: list[int], cp: int, tp: int, shortest_cut: int
) -> None:
    cu_seqlens = list(itertools.accumulate(lengths, initial=0))
    of_cp, of_both = (of_documents(cu_seqlens, cp, shortest_cut, sp=sp) for sp in (1, tp))
    np.testing.assert_array_equal(split_over_tp(of_cp, tp), of_both)
    empty = np.insert(of_cp, range(len(of_cp)), of_cp * [1, 1, 1, 0], axis=0)
    np.testing.assert_array_equal(split_over_tp(empty, tp), of_both)


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 5), st.integers(1, 50))
def test_every_map_of_tokens_is_one(lengths: list[int], cp: int, shortest_cut: int) -> None:
    runs = of_documents([0, *itertools.accumulate(lengths)], cp, shortest_cut)
    check_map(runs, num_ranks=cp, num_tokens=sum(lengths))
    check_map(np.insert(runs, range(len(runs)), runs * [1, 1, 1, 0], axis=0), num_ranks=cp, num_tokens=sum(lengths))


GOOD = spread_zigzag(8, Group(cp=2))  # rank 0 keeps 0, 1, 6 and 7


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD[:, :3], r"int64 \[num_runs, 4\], got int64 \[3, 3\]"),
        (GOOD.astype(np.int32), "got int32"),
        (GOOD + np.array([1, 0, 0, 0]), "expected ranks 0 to 1"),
        (GOOD * np.array([1, 1, -1, 1]), "no negative number"),
        (GOOD[::-1], "expected runs by rank"),
        (GOOD + np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]), "one behind the other, from 0"),
        (GOOD[:1], "token 2 of 8 has no holder"),
        (GOOD[:2], "token 2 of 8 has no holder"),
        (GOOD - np.array([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]), "token 5 of 8 has two holders"),
        (GOOD + np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]), "token 8 of 8 has two holders"),
        (GOOD - np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]), "token 7 of 8 has no holder"),
    ],
)
def test_what_is_not_a_map_of_tokens_is_refused(bad: IntArray, message: str) -> None:
    check_map(GOOD, num_ranks=2, num_tokens=8)
    with pytest.raises(ValueError, match=message):
        check_map(bad, num_ranks=2, num_tokens=8)


@pytest.mark.parametrize("mutant", ["a lost token", "a token twice", "a gap in the rows"])
def test_the_oracle_sees(mutant: str) -> None:
    runs = spread_zigzag(64, Group(cp=2)).copy()
    if mutant == "a lost token":
        runs[0, 3] -= 1
    elif mutant == "a token twice":
        runs[1, 2] -= 1
    else:
        runs[1, 1] += 1
    with pytest.raises(AssertionError):
        assert_is_a_partition(runs, 64, Group(cp=2))
