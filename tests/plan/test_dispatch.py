"""The dispatch planner: every token once, work and tokens level, few documents cut; against exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.layout.dispatch import plan_tokens
from hetsched.layout.tokens import Group, IntArray, spread_zigzag, tokens_of
from tests.plan.token_maps import assert_is_a_partition, holders, loads, tokens_of_cp


def boundaries(lengths: list[int]) -> list[int]:
    return list(itertools.accumulate(lengths, initial=0))


def excess(values: list[int]) -> float:
    """By how much the largest is above the mean, as a fraction."""
    return max(values) * len(values) / max(1, sum(values)) - 1


LENGTHS = st.lists(st.one_of(st.integers(0, 40), st.integers(500, 3000)), max_size=12)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 3), st.integers(1, 600), st.integers(0, 2), st.integers(0, 100))
def test_every_token_has_one_holder_and_short_documents_have_one_rank(
    lengths: list[int], cp: int, sp: int, shortest_cut: int, quadratic: int, linear: int
) -> None:
    group, cu_seqlens = Group(cp, sp), boundaries(lengths)
    options = {"cp": cp, "sp": sp, "quadratic": quadratic, "linear": linear, "shortest_cut": shortest_cut}
    runs = plan_tokens(cu_seqlens, **options)
    assert_is_a_partition(runs, cu_seqlens[-1], group)
    assert np.array_equal(runs, plan_tokens(cu_seqlens, **options))
    owner = {token: c for c in range(cp) for token in tokens_of_cp(runs, c, group)}
    for length, (start, end) in zip(lengths, itertools.pairwise(cu_seqlens), strict=True):
        ranks = {owner[token] for token in range(start, end)}
        assert len(ranks) <= (1 if length < shortest_cut else cp)


@given(st.lists(st.integers(1, 120), max_size=10), st.integers(2, 8), st.integers(0, 9))
def test_one_long_document_levels_what_the_short_ones_leave(lengths: list[int], cp: int, place: int) -> None:
    lengths.insert(place, 400 * cp)
    cu_seqlens = boundaries(lengths)
    runs = plan_tokens(cu_seqlens, cp=cp, quadratic=1, linear=1, shortest_cut=200)
    tokens, pairs = loads(runs, cu_seqlens, cp)
    assert max(tokens) - min(tokens) <= 1
    assert excess(pairs) < 0.03
    assert sum(len(ranks) > 1 for ranks in holders(runs, cu_seqlens, cp)) == 1


@pytest.mark.parametrize("cp", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("length", [1, 7, 64, 1000, 4096])
def test_one_document_is_cut_zigzag_but_for_rounding(length: int, cp: int) -> None:
    runs = plan_tokens([0, length], cp=cp, quadratic=1, linear=0, shortest_cut=1)
    tokens, pairs = loads(runs, [0, length], cp)
    zigzag_tokens, zigzag_pairs = loads(spread_zigzag(length, Group(cp)), [0, length], cp)
    assert max(tokens) <= max(zigzag_tokens)
    assert max(pairs) <= max(zigzag_pairs) + 2 * length
    if length % (2 * cp) == 0:
        assert np.array_equal(runs, spread_zigzag(length, Group(cp)))


def least_excess(lengths: list[int], whole: list[int], cp: int) -> float:
    """The best that any placing of whole documents and any nested cuts of the longest can reach, by trying all."""
    longest = max(lengths)
    best = float("inf")
    for ranks in itertools.product(range(cp), repeat=len(whole)):
        tokens, pairs = [0] * cp, [0] * cp
        for rank, length in zip(ranks, whole, strict=True):
            tokens[rank] += length
            pairs[rank] += length * length
        for order in itertools.permutations(range(cp)):
            for cuts in itertools.combinations_with_replacement(range(longest + 1), 2 * cp - 1):
                t, p = tokens.copy(), pairs.copy()
                ends = (0, *cuts, longest)
                for piece, (a, b) in enumerate(itertools.pairwise(ends)):
                    rank = order[min(piece, 2 * cp - 1 - piece)]
                    t[rank] += b - a
                    p[rank] += b * b - a * a
                best = min(best, max(excess(t), excess(p)))
    return best


@pytest.mark.parametrize("whole", [[], [3], [4, 2], [5, 5, 1], [7, 1]])
@pytest.mark.parametrize("longest", [8, 13, 20])
def test_two_ranks_come_within_rounding_of_the_best_of_all_plans(longest: int, whole: list[int]) -> None:
    lengths = [longest, *whole]
    runs = plan_tokens(boundaries(lengths), cp=2, quadratic=1, linear=0, shortest_cut=longest)
    tokens, pairs = loads(runs, boundaries(lengths), 2)
    # one token more or less at the dearest end of the document
    rounding = max(2 / sum(lengths), 4 * longest / sum(n * n for n in lengths))
    assert max(excess(tokens), excess(pairs)) <= least_excess(lengths, whole, 2) + rounding


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(2, 3))
def test_whole_documents_cost_at_most_a_third_more_than_the_best_placement(lengths: list[int], cp: int) -> None:
    cu_seqlens = boundaries(lengths)
    runs = plan_tokens(cu_seqlens, cp=cp, quadratic=1, linear=3, shortest_cut=100)
    costs = [n * n + 3 * n for n in lengths]
    got = [sum(cost for cost, ranks in zip(costs, holders(runs, cu_seqlens, cp), strict=True) if ranks == {r})
           for r in range(cp)]  # fmt: skip
    assert sum(got) == sum(costs)
    best = min(
        max(sum(cost for cost, rank in zip(costs, ranks, strict=True) if rank == r) for r in range(cp))
        for ranks in itertools.product(range(cp), repeat=len(lengths))
    )
    assert max(got) * 3 <= best * 4


def mixed(seed: int, total: int) -> list[int]:
    """Log-normal lengths from 1k to 16k, the last one cut to the total."""
    generator = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        length = int(np.clip(generator.lognormal(np.log(4096), 0.8), 1024, 16384))
        lengths.append(min(length, total - sum(lengths)))
    return lengths


@pytest.mark.parametrize("cp", [2, 3, 4])
@pytest.mark.parametrize("total", [32768, 131072])
def test_log_normal_mixes_are_level_within_three_percent(total: int, cp: int) -> None:
    for seed in range(20):
        cu_seqlens = boundaries(mixed(seed, total))
        tokens, pairs = loads(plan_tokens(cu_seqlens, cp=cp, quadratic=1, linear=4096), cu_seqlens, cp)
        assert excess(tokens) < 0.03
        assert excess(pairs) < 0.03


def test_as_few_documents_are_cut_as_needed() -> None:
    def num_cut(lengths: list[int]) -> int:
        cu_seqlens = boundaries(lengths)
        runs = plan_tokens(cu_seqlens, cp=2, quadratic=1, linear=0, shortest_cut=1)
        return sum(len(ranks) > 1 for ranks in holders(runs, cu_seqlens, 2))

    assert num_cut([1000, 1000, 200, 200]) == 0
    assert num_cut([1000, 900, 300]) == 1
    assert num_cut([1000]) == 1


def test_a_rank_may_hold_nothing() -> None:
    runs = plan_tokens([0, 0, 5, 5], cp=3, quadratic=1, linear=0)
    assert [len(tokens_of(runs, rank)) for rank in range(3)] == [5, 0, 0]
    assert plan_tokens([0], cp=3, quadratic=1, linear=0).shape == (0, 4)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        plan_tokens([0, 3, 2], cp=2, quadratic=1, linear=0)
    with pytest.raises(ValueError, match="cp, sp"):
        plan_tokens([0, 3], cp=0, quadratic=1, linear=0)
    with pytest.raises(ValueError, match="quadratic, linear"):
        plan_tokens([0, 3], cp=2, quadratic=-1, linear=0)


def test_a_plan_that_levels_tokens_alone_would_be_seen() -> None:
    length, cp = 4096, 4
    edges = np.arange(cp) * (length // cp)
    runs: IntArray = np.stack([np.arange(cp), edges * 0, edges, edges * 0 + length // cp], axis=1)
    assert_is_a_partition(runs, length, Group(cp))
    tokens, pairs = loads(runs, [0, length], cp)
    assert excess(tokens) == 0
    assert excess(pairs) > 0.5
