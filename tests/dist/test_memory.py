"""What the encoder holds is bounded by the microbatches in flight, not by those of the step."""

from __future__ import annotations

import pytest

from tests.dist.metered import encoder_use, most_in_flight
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.test_parity import layout

NUM_RANKS = 2


def used(ranks: Pool, schedule: str, *, microbatches: int) -> tuple[list[int], list[int]]:
    """Bytes of encoder state of each rank, at its own peak, and the calls of its encoder."""
    plan = make_plan(
        vision=layout(dp=NUM_RANKS), llm=layout(pp=2), world_size=2, microbatches=microbatches, schedule=schedule
    )
    peak, calls = zip(*ranks.run(encoder_use, plan, num_ranks=NUM_RANKS), strict=True)
    return list(peak), list(calls)


def peaks(ranks: Pool, schedule: str, *, microbatches: int) -> list[int]:
    return used(ranks, schedule, microbatches=microbatches)[0]


@pytest.mark.parametrize("split_items", ["true", "false"])
@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_with_few_in_flight_it_does_not_grow_with_the_microbatches(
    ranks: Pool, in_flight: int, split_items: str
) -> None:
    text = f'encoder = "fill"\nin_flight = {in_flight}\nsplit_items = {split_items}'
    (one,) = {sum(peaks(ranks, 'encoder = "three_phase"', microbatches=1))}
    found = [peaks(ranks, text, microbatches=m) for m in (8, 16)]
    assert max(map(max, found)) <= in_flight * one


@pytest.mark.parametrize("split_items", ["true", "false"])
def test_no_rank_opens_a_microbatch_before_another_has_given_one_up(ranks: Pool, split_items: str) -> None:
    text = f'encoder = "fill"\nin_flight = 2\nsplit_items = {split_items}'
    plan = make_plan(vision=layout(dp=4), llm=layout(pp=4), world_size=4, microbatches=8, schedule=text)
    assert set(ranks.run(most_in_flight, plan, 3, True, num_ranks=4)) == {2}
    assert max(ranks.run(most_in_flight, plan, 3, False, num_ranks=4)) > 2


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


def test_a_window_is_one_call_of_the_encoder(ranks: Pool) -> None:
    for window, num_calls in ((1, 5), (2, 3), (5, 1)):
        text = f'encoder = "window"\nwindow = {window}'
        assert used(ranks, text, microbatches=5)[1] == [num_calls] * NUM_RANKS


def test_recompute_calls_the_encoder_again_in_the_backward(ranks: Pool) -> None:
    assert used(ranks, 'encoder = "three_phase"\nrecompute = true', microbatches=3)[1] == [6] * NUM_RANKS
