"""Debugging: every message is compared with what is expected, and the first that differs is named."""

from __future__ import annotations

from unittest import mock

import pytest
import torch.distributed as dist

from hetsched.plan import Plan
from hetsched.runtime import prepare
from tests.dist.plans import make_plan
from tests.dist.pool import Pool, RanksFailed
from tests.dist.test_parity import CUT, check_against, expected, layout
from tests.dist.work import train_on_ranks

TIMEOUT_S = 12.0
"""The other rank waits so long once one has failed."""
PLANS = {
    "non-colocated": dict(vision=layout(dp=2), llm=layout(2, dp=2), world_size=4),
    "cp 2 pp 2, fill, 2 in flight": dict(
        vision=layout(dp=4), llm=layout(cp=2, pp=2) + CUT, world_size=4, schedule='encoder = "fill"\nin_flight = 2'
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_right_job_trains_as_ever(ranks: Pool, case: str) -> None:
    plan = make_plan(**PLANS[case])
    found = ranks.run(train_on_ranks, plan, "many", None, True, num_ranks=4)
    check_against(found, expected(plan, "many"))


def test_swapped_messages_are_named_by_edge_microbatch_and_ranks(ranks: Pool) -> None:
    plan = make_plan(vision=layout(dp=2), llm=layout(pp=2), world_size=2)
    with pytest.raises(RanksFailed) as failed:
        ranks.run(train_on_ranks, plan, "equal", "two swapped receives", True, TIMEOUT_S, num_ranks=2)
    text = str(failed.value)
    assert "llm stages 0 and 1, forward, microbatch 1: rank 0 sent and rank 1 expects something else" in text
    assert "the microbatch is 0 there and 1 here" in text


def train_with_another_plan(plan: Plan) -> None:
    """Rank 1 plans its steps for samples in another order, of equal sizes."""
    original = prepare.plan_step

    def reversed_samples(plan: Plan, samples, **options):  # type: ignore[no-untyped-def]
        return original(plan, samples[::-1] if dist.get_rank() else samples, **options)

    with mock.patch.object(prepare, "plan_step", reversed_samples):
        train_on_ranks(plan, "equal", None, True, TIMEOUT_S)


def test_a_rank_that_decided_otherwise_is_noticed_at_its_first_message(ranks: Pool) -> None:
    plan = make_plan(vision=layout(dp=2), llm=layout(pp=2), world_size=2)
    with pytest.raises(RanksFailed, match="the digest of the step is"):
        ranks.run(train_with_another_plan, plan, num_ranks=2)
