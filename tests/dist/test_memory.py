"""What the encoder holds is bounded by the microbatches in flight, not by those of the step."""

from __future__ import annotations

import pytest

from tests.dist.metered import encoder_peak
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.test_parity import layout

NUM_RANKS = 2


def peaks(ranks: Pool, schedule: str, *, microbatches: int) -> list[int]:
    """Bytes of encoder state of each rank, at its own peak."""
    plan = make_plan(
        vision=layout(dp=NUM_RANKS), llm=layout(pp=2), world_size=2, microbatches=microbatches, schedule=schedule
    )
    return ranks.run(encoder_peak, plan, num_ranks=NUM_RANKS)


@pytest.mark.parametrize("split_items", ["true", "false"])
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_with_few_in_flight_it_does_not_grow_with_the_microbatches(
    ranks: Pool, in_flight: int, split_items: str
) -> None:
    text = f'encoder = "fill"\nin_flight = {in_flight}\nsplit_items = {split_items}'
    (one,) = {sum(peaks(ranks, 'encoder = "three_phase"', microbatches=1))}
    found = [peaks(ranks, text, microbatches=m) for m in (8, 16)]
    assert max(map(max, found)) <= in_flight * one


def test_three_phase_grows_with_the_microbatches(ranks: Pool) -> None:
    one, four, sixteen = (peaks(ranks, 'encoder = "three_phase"', microbatches=m) for m in (1, 4, 16))
    assert four == [4 * each for each in one]
    assert sixteen == [16 * each for each in one]


def test_recompute_keeps_only_the_rows_that_were_made(ranks: Pool) -> None:
    text = 'encoder = "three_phase"\nrecompute = true'
    four, sixteen = (peaks(ranks, text, microbatches=m) for m in (4, 16))
    # One item a sample and one sample a rank and microbatch: 2 rows of 24 float64.
    assert [b - a for a, b in zip(four, sixteen, strict=True)] == [12 * 2 * 24 * 8] * NUM_RANKS
    assert max(four) < max(peaks(ranks, 'encoder = "three_phase"', microbatches=4)) / 2
