"""Every pair of layouts over up to eight ranks, with real messages; wrong routes come out wrong."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from hetsched.layout.crossing import Crossing
from tests.dist.carry import Delivery, Load, carry
from tests.dist.pool import Pool
from tests.plan.crossing_oracle import Outcome, Pair, Truth, faults_of, is_route
from tests.plan.every_pair import colocated, disjoint, overlapping
from tests.plan.route_mutants import ROUTE_MUTANTS, Mutant, a_missing_sum, mutated

NUM_RANKS = 8
INT64 = 8


def load_of(truth: Truth, crossing: Crossing) -> Load:
    """Forward a row is its number and a one, so that arrivals are counted."""
    made, wanted = truth.made, truth.wanted
    rows = np.stack([made.numbers, np.ones_like(made.numbers)], axis=1)
    return Load(
        crossing.forward,
        crossing.backward,
        {rank: rows[made.of(rank)] for rank in truth.produced},
        {rank: truth.sent[wanted.of(rank), None] for rank in truth.index},
    )


def outcome_of(truth: Truth, deliveries: Sequence[Delivery]) -> Outcome:
    """What all ranks received and sent."""
    arrived = [rows for rank in truth.index if (rows := deliveries[rank].rows) is not None]
    returned = [rows for rank in truth.produced if (rows := deliveries[rank].gradients) is not None]
    assert (len(arrived), len(returned)) == (len(truth.index), len(truth.produced))
    forward, backward = np.sum([delivery.sent_bytes for delivery in deliveries], axis=0).tolist()
    assert forward % (2 * INT64) == backward % INT64 == 0
    return Outcome(np.concatenate(arrived), np.concatenate(returned)[:, 0], (forward // (2 * INT64), backward // INT64))


def faults_on(ranks: Pool, pairs: Sequence[tuple[Truth, Crossing]], *, mutant: str | None = None) -> list[set[str]]:
    """What is wrong with each crossing as eight ranks carry it out, with a runtime that is wrong in the named way."""
    found = ranks.run(carry, [load_of(*pair) for pair in pairs], mutant, num_ranks=NUM_RANKS)
    deliveries = zip(*found, strict=True)
    return [faults_of(t, c, outcome_of(t, of_pair)) for (t, c), of_pair in zip(pairs, deliveries, strict=True)]


def check_all(ranks: Pool, pairs: Sequence[Pair]) -> int:
    """How many pairs ran, all without fault."""
    faults = faults_on(ranks, [(Truth(pair), pair.cross()) for pair in pairs])
    assert [(pair, found) for pair, found in zip(pairs, faults, strict=True) if found] == []
    return len(faults)


def test_every_pair_on_the_same_ranks(ranks: Pool) -> None:
    assert check_all(ranks, list(colocated())) == 2263


def test_every_pair_on_disjoint_ranks_eight_in_all(ranks: Pool) -> None:
    assert check_all(ranks, list(disjoint(max_ranks=NUM_RANKS))) == 1258


def test_pairs_that_share_some_ranks(ranks: Pool) -> None:
    assert check_all(ranks, list(overlapping(1000))) == 1000


@pytest.mark.parametrize("is_forward", [True, False], ids=["forward", "backward"])
def test_wrong_routes_are_noticed(ranks: Pool, is_forward: bool) -> None:
    """All ranks have the same wrong route; those that name rows that are nowhere cannot be carried out."""
    wrong: list[tuple[Mutant, Truth, Crossing]] = []
    for pair, mutant in itertools.product(overlapping(160), ROUTE_MUTANTS):
        truth, crossing = Truth(pair), mutated(pair, pair.cross(), mutant, is_forward=is_forward)
        if crossing is not None and is_route(truth, crossing):
            wrong.append((mutant, truth, crossing))
    found = faults_on(ranks, [(truth, crossing) for _, truth, crossing in wrong])
    assert all(faults >= {"rows" if is_forward else "gradients"} for faults in found)
    num_seen = Counter(mutant for mutant, _, _ in wrong)
    expected = set(ROUTE_MUTANTS) - ({a_missing_sum} if is_forward else set())
    assert num_seen.keys() == expected and min(num_seen.values()) >= 10


@pytest.mark.parametrize("mutant", ["a dropped row", "no sum in the backward"])
def test_a_wrong_exchange_is_noticed(ranks: Pool, mutant: str) -> None:
    pairs = [(Truth(pair), pair.cross()) for pair in overlapping(60)]
    found = faults_on(ranks, pairs, mutant=mutant)
    assert sum("gradients" in faults for faults in found) >= 10
