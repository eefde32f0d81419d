"""Every schedule, with the encoder placed in every way, gives the gradients of one process."""

from __future__ import annotations

import pytest

from hetsched.stepplan import plan_step
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.test_parity import check_against, expected, layout
from tests.dist.work import batches, source_of, train_on_ranks

PIPELINES = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zb-h1": 1, "zb-v": 2, "dualpipev": 2}
PLACES = {
    "colocated": dict(vision=layout(dp=2), first=0, world_size=2),
    "non-colocated": dict(vision=layout(), first=1, world_size=3),
}


POLICIES = {"three_phase": "", "stage0": "", "window": "window = 3", "fill": ""}
VARIANTS = {
    "three_phase, recomputed": "recompute = true",
    "fill, whole": "split_items = false",
    "fill, 1 in flight": "in_flight = 1",
    "fill, 2 in flight, recomputed": "in_flight = 2\nrecompute = true",
}
CASES = [(pipeline, policy) for pipeline in PIPELINES for policy in POLICIES]
CASES += [(pipeline, policy) for pipeline in ("1f1b", "zb-v") for policy in VARIANTS]


def schedule_of(policy: str, *, pipeline: str = "1f1b") -> str:
    """The body of [schedule]."""
    return f'pipeline = "{pipeline}"\nencoder = "{policy.split(",")[0]}"\n{(POLICIES | VARIANTS)[policy]}'


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("pipeline", "policy"), CASES)
def test_every_schedule_has_the_gradients_of_one_process(ranks: Pool, pipeline: str, place: str, policy: str) -> None:
    parts = PLACES[place]
    plan = make_plan(
        vision=parts["vision"],
        llm=layout(parts["first"], pp=2, vpp=PIPELINES[pipeline]),
        world_size=parts["world_size"],
        schedule=schedule_of(policy, pipeline=pipeline),
    )
    check_against(ranks.run(train_on_ranks, plan, "digits", num_ranks=plan.world_size), expected(plan, "digits"))


TWO = {
    "colocated": dict(vision=layout(dp=2), audio=layout(dp=2), llm=layout(pp=2), world_size=2),
    "non-colocated": dict(vision=layout(), audio=layout(1), llm=layout(2, pp=2), world_size=4),
    "partly": dict(vision=layout(dp=3), audio=layout(1), llm=layout(1, pp=2), world_size=3),
}


@pytest.mark.parametrize("policy", [*POLICIES, "three_phase, recomputed", "fill, 1 in flight"])
@pytest.mark.parametrize("place", TWO)
def test_two_encoders_of_which_one_is_frozen(ranks: Pool, place: str, policy: str) -> None:
    parts = dict(TWO[place], schedule=schedule_of(policy))
    plan = make_plan(**dict(parts, audio=f"{parts['audio']}\nfrozen = true"))
    check_against(ranks.run(train_on_ranks, plan, "many", num_ranks=plan.world_size), expected(plan, "many"))


def test_the_program_of_fill_differs_from_step_to_step() -> None:
    plan = make_plan(vision=layout(dp=2), llm=layout(pp=2), world_size=2, schedule='encoder = "fill"')
    source = source_of(plan, "digits")
    lanes = {plan_step(plan, tuple(map(source.describe, batch))).program.lanes for batch in batches("digits")}
    assert len(lanes) > 1
