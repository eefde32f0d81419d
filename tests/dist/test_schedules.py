"""Every schedule, with the encoder placed either way, gives the gradients of one process."""

from __future__ import annotations

import pytest

from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.test_parity import check_against, expected, layout
from tests.dist.work import train_on_ranks

PIPELINES = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zb-h1": 1, "zb-v": 2, "dualpipev": 2}
PLACES = {
    "colocated": dict(vision=layout(dp=2), first=0, world_size=2),
    "non-colocated": dict(vision=layout(), first=1, world_size=3),
}


@pytest.mark.parametrize("policy", ["three_phase", "stage0"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_schedule_has_the_gradients_of_one_process(ranks: Pool, pipeline: str, place: str, policy: str) -> None:
    parts = PLACES[place]
    plan = make_plan(
        vision=parts["vision"],
        llm=layout(parts["first"], pp=2, vpp=PIPELINES[pipeline]),
        world_size=parts["world_size"],
        schedule=f'pipeline = "{pipeline}"\nencoder = "{policy}"',
    )
    check_against(ranks.run(train_on_ranks, plan, "many", num_ranks=plan.world_size), expected(plan, "many"))
