"""Longest-first assignment against a plain Python version and the exact optimum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.layout.assign import assign_longest_first, attention_cost

COSTS = st.lists(st.integers(0, 50), max_size=30)


def loads_of(costs: Sequence[int], bins: Sequence[int], initial: Sequence[int]) -> list[int]:
    loads = list(initial)
    for cost, bin_ in zip(costs, bins, strict=True):
        loads[bin_] += cost
    return loads


def naive(costs: Sequence[int], initial: Sequence[int]) -> list[int]:
    loads, bins = list(initial), [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: (-costs[job], job)):
        bins[job] = min(range(len(loads)), key=lambda bin_: (loads[bin_], bin_))
        loads[bins[job]] += costs[job]
    return bins


@given(COSTS, st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_every_job_goes_where_the_plain_version_puts_it(costs: list[int], loads: list[int]) -> None:
    assert assign_longest_first(costs, num_bins=len(loads), loads=loads) == naive(costs, loads)


@pytest.mark.parametrize("num_bins", [1, 2, 3])
def test_the_largest_load_is_within_four_thirds_of_the_optimum(num_bins: int) -> None:
    for costs in product(range(1, 8, 2), repeat=5):
        bins = assign_longest_first(costs, num_bins=num_bins)
        largest = max(loads_of(costs, bins, [0] * num_bins))
        optimum = min(max(loads_of(costs, b, [0] * num_bins)) for b in product(range(num_bins), repeat=5))
        assert 3 * num_bins * largest <= (4 * num_bins - 1) * optimum


@given(st.lists(st.integers(1, 50), min_size=5, max_size=30), st.integers(1, 5))
def test_no_bin_stays_empty_when_there_are_enough_jobs(costs: list[int], num_bins: int) -> None:
    assert set(assign_longest_first(costs, num_bins=num_bins)) == set(range(num_bins))


@pytest.mark.parametrize(
    ("costs", "num_bins", "loads", "message"),
    [
        ([1], 0, None, "num_bins"),
        ([3, -1], 2, None, r"costs\[1\]: expected at least 0, got -1"),
        ([1], 2, [0], "loads: expected one per bin, 2, got 1"),
    ],
)
def test_bad_arguments_are_named(costs: list[int], num_bins: int, loads: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign_longest_first(costs, num_bins=num_bins, loads=loads)


def test_attention_cost_is_a_quadratic() -> None:
    assert [attention_cost(n, quadratic=2, linear=3) for n in (0, 1, 10)] == [0, 5, 230]
