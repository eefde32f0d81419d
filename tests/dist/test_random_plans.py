"""Whatever plan is not refused as it is read can be planned, and has the gradients of one process."""

from __future__ import annotations

import pytest

from hetsched.stepplan import plan_step
from tests.dist.pool import Pool
from tests.dist.random_plans import random_plan
from tests.dist.test_parity import check_against, expected
from tests.dist.work import batches, source_of, train_on_ranks

PLANNED = range(2000)
RUN = {
    3954: "a V on one rank, replicas on two lanes",
    3931: "a V on two ranks, replicas on different lanes",
    61: "stage0, an encoder of two stages around the LLM's work",
    674: "stage0, replicas of which some get no work",
    5597: "two encoders with few microbatches in flight",
}
"""Plans that failed when they were first drawn."""


def test_every_plan_has_a_program_for_every_batch() -> None:
    plans = [found for seed in PLANNED if (found := random_plan(seed)) is not None]
    assert len(plans) > 100
    for plan, items in plans:
        source = source_of(plan, items)
        for batch in batches(items)[:2]:
            plan_step(plan, tuple(map(source.describe, batch)))


@pytest.mark.parametrize("seed", RUN)
def test_some_have_the_gradients_of_one_process(ranks: Pool, seed: int) -> None:
    found = random_plan(seed)
    assert found is not None
    plan, items = found
    check_against(ranks.run(train_on_ranks, plan, items, num_ranks=plan.world_size), expected(plan, items))
