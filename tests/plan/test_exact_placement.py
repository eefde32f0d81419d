"""``fill`` beside the best of all placements, on many cases that are small enough to try them all."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from hetsched.schedule.action import Kind
from hetsched.schedule.encoder import ItemCost
from tests.plan.exact_placement import Case, Search
from tests.plan.fillable import Step, even, step

NUM_CASES = 200
SIZES = [(2, 2), (2, 3), (2, 4), (3, 2), (3, 3)]


def drawn(seed: int) -> Step:
    """A random small step."""
    rng = random.Random(seed)
    num_lanes, num_microbatches = SIZES[seed % len(SIZES)]
    items = [[ItemCost(rng.randint(1, 4), rng.randint(1, 6))] for _ in range(num_microbatches)]
    durations = {Kind.F: rng.randint(1, 4), Kind.B: rng.randint(1, 6)}
    return step(rng.choice(["1f1b", "gpipe"]), num_lanes, items, durations=durations)


def case_of(small: Step) -> Case:
    num_lanes = len(small.lanes)
    forward, backward = zip(*(of_microbatch[0] for of_microbatch in small.items["vision"]), strict=True)
    every = [small.durations[kind] for kind in (Kind.F, Kind.B)]
    return Case(small.lanes, [every[0]] * num_lanes, [every[1]] * num_lanes, forward, backward)


def optimum(small: Step, limit: int) -> int:
    return Search(case_of(small), limit).run()


def test_fill_is_never_shorter_than_the_optimum_and_close_to_it() -> None:
    gaps = []
    for seed in range(NUM_CASES):
        small = drawn(seed)
        found = small.run().timeline.makespan_ns
        # Only what is shorter than the limit is looked at, so that a makespan below the optimum is not found again.
        best = optimum(small, found + 1)
        assert best <= found, f"case {seed}: no placement takes {found}"
        gaps.append((Fraction(found, best) - 1, seed))
    mean, (worst, where) = sum(gap for gap, _ in gaps) / NUM_CASES, max(gaps)
    print(f"\nfill beside the optimum: {float(mean):.3%} longer on average, {float(worst):.2%} at worst (case {where})")
    assert mean <= Fraction(3, 100)


@pytest.mark.parametrize("seed", range(5))
def test_a_makespan_below_the_optimum_is_not_found(seed: int) -> None:
    best = optimum(drawn(seed), 1000)
    assert optimum(drawn(seed), best) == best, "nothing is shorter than the shortest"
    assert optimum(drawn(seed), best - 1) == best - 1, "the limit comes back where there is nothing below it"


def test_the_exact_search_finds_what_is_known() -> None:
    # One lane: all of the work. Two lanes, encoders for nothing: the pipeline's (M + P - 1)(F + B).
    assert optimum(step("1f1b", 1, even(2, 3, 5)), 1000) == 2 * (3 + 5 + 2 + 4)
    pipelined = case_of(step("1f1b", 2, even(3, 0, 0)))
    assert Search(pipelined, 1000).run() == (3 + 2 - 1) * (2 + 4)
    # Two lanes, one microbatch: the chain of all of it.
    assert optimum(step("1f1b", 2, even(1, 3, 5)), 1000) == 3 + 2 * (2 + 4) + 5
