"""What a stage is given on its rank: what its contract says, wherever the plan puts it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hetsched.batch import Batch
from hetsched.runtime.channels import Channels
from hetsched.runtime.work import RankStep
from hetsched.stepplan import plan_step
from tests.dist.plans import make_plan
from tests.dist.ragged import RaggedSource


@pytest.mark.parametrize("pipeline", ["interleaved", "zb-v"])
def test_only_the_first_and_the_last_stage_of_a_module_are_given_inputs(pipeline: str) -> None:
    llm = "first_rank = 0\nlayout = { pp = 2, vpp = 2 }"
    plan = make_plan(vision="first_rank = 0", llm=llm, world_size=2, schedule=f'pipeline = "{pipeline}"')
    batch = Batch.of(RaggedSource(plan.seed), range(8))
    step, given = plan_step(plan, batch.samples), Counter[int]()
    for stage in range(4):
        rank = plan.pipeline_rank("llm", stage)
        work = RankStep(plan, step, rank=rank, channels=Channels(plan), device=torch.device("cpu"))
        work.load(batch)
        for m in range(plan.microbatches):
            given[stage] += len(work.meta("llm", stage, [m], {}).inputs)
    assert given == {0: 2 * plan.microbatches, 1: 0, 2: 0, 3: 2 * plan.microbatches}


def test_a_share_is_told_by_its_samples_or_items() -> None:
    plan = make_plan(vision="first_rank = 0", llm="first_rank = 0", world_size=1, microbatches=1)
    batch = Batch.of(RaggedSource(plan.seed), [4, 2])
    step = plan_step(plan, batch.samples)
    work = RankStep(plan, step, rank=0, channels=Channels(plan), device=torch.device("cpu"))
    shares = {module: step.shares[module, 0][0].share for module in plan.modules}
    samples, items = shares["llm"].members, shares["vision"].members
    assert work.contents("llm", 0) == f"samples {', '.join(str(s.index) for s in samples)}" and len(samples) == 2
    assert work.contents("vision", 0) == f"items {', '.join(str(i.key) for i in items)}" and items
