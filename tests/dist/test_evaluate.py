"""Evaluation gives every sample its outputs, whatever the layout cut it into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hetsched.batch import Batch
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.test_parity import CUT, layout

CASES = {
    "pp 2": dict(vision=layout(dp=2), llm=layout(pp=2), world_size=2),
    "dp 2": dict(vision=layout(dp=2), llm=layout(dp=2), world_size=2),
    "cp 3 pp 2": dict(vision=layout(dp=6), llm=layout(cp=3, pp=2) + CUT, world_size=6),
}


def evaluate(plan: Plan) -> tuple[float, dict[int, Tensor]]:
    engine = Engine(plan, builders(plan), timeout_s=30.0)
    report = engine.evaluate(Batch.of(RaggedSource(plan.seed), range(11)))
    return report.loss, report.outputs


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_one_process(ranks: Pool, case: str) -> None:
    (want,) = ranks.run(evaluate, make_plan(vision=layout(), llm=layout(), world_size=1), num_ranks=1)
    plan = make_plan(**CASES[case])
    for loss, outputs in ranks.run(evaluate, plan, num_ranks=plan.world_size):
        assert loss == pytest.approx(want[0], rel=1e-10)
        assert outputs.keys() == want[1].keys() == set(range(11))
        for index, rows in outputs.items():
            torch.testing.assert_close(rows, want[1][index], rtol=0, atol=0)
