"""Every pair of layouts over up to eight ranks on either side: exact, adjoint and least; wrong crossings are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from hetsched.layout.crossing import Crossing
from tests.plan.crossing_oracle import Pair, Truth, faults_of, outcome_of
from tests.plan.every_pair import CONSUMERS, PRODUCERS, colocated, disjoint, overlapping
from tests.plan.route_mutants import (
    CROSSING_MUTANTS,
    ROUTE_MUTANTS,
    Mutant,
    a_missing_sum,
    mutated,
)


def faults_in(pair: Pair, crossing: Crossing) -> set[str]:
    truth = Truth(pair)
    return faults_of(truth, crossing, outcome_of(truth, crossing))


def check_all(pairs: Iterable[Pair]) -> int:
    """How many pairs there are, each with a crossing without fault."""
    num_pairs = 0
    for pair in pairs:
        assert not faults_in(pair, pair.cross()), pair
        num_pairs += 1
    return num_pairs


def test_every_layout_is_there() -> None:
    """Ordered factors of 1 to 8: 63 without sequence parallelism, 25 of them with tp, which may also be that."""
    assert (len(PRODUCERS), len(CONSUMERS)) == (63 + 25, 63 + 2 * 25)


def test_every_pair_on_the_same_ranks() -> None:
    assert check_all(colocated()) == 2263


def test_every_pair_on_disjoint_ranks_up_to_eight_each() -> None:
    assert check_all(disjoint(max_ranks=16)) == 88 * 113


def test_pairs_that_share_some_ranks() -> None:
    assert check_all(overlapping(2000)) == 2000


@pytest.mark.parametrize("is_forward", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("mutant", ROUTE_MUTANTS)
def test_a_wrong_route_is_noticed(mutant: Mutant, is_forward: bool) -> None:
    """In every pair where it can be; and in some by the inner products alone, which see one copy of each row."""
    found = []
    for pair in overlapping(300):
        wrong = mutated(pair, pair.cross(), mutant, is_forward=is_forward)
        if wrong is not None:
            found.append(faults_in(pair, wrong))
            assert found[-1] >= {"rows" if is_forward else "gradients"}, pair
    if is_forward and mutant is a_missing_sum:
        assert not found
    else:
        assert len(found) > 50 and sum("adjoint" in faults for faults in found) > 10


@pytest.mark.parametrize("mutant", CROSSING_MUTANTS)
def test_a_wrong_crossing_is_noticed(mutant: Callable[[Pair, Crossing], Crossing | None]) -> None:
    seen = 0
    for pair in overlapping(300):
        wrong = mutant(pair, pair.cross())
        if wrong is not None:
            assert CROSSING_MUTANTS[mutant] in faults_in(pair, wrong), pair
            seen += 1
    assert seen > 30
