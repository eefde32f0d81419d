"""Maps of tokens to ranks: every token once, rows without gaps, work level."""

from __future__ import annotations

import itertools

import pytest

from hetsched.layout.tokens import Group, spread_zigzag, tokens_of
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
