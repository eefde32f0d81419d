"""Evaluation gives every sample its outputs, whatever the layout cut it into."""

from __future__ import annotations

from collections.abc import Sequence

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
from tests.dist.reference import train_alone
from tests.dist.test_parity import CUT, layout

CASES = {
    "pp 2": dict(vision=layout(dp=2), llm=layout(pp=2), world_size=2),
    "dp 2": dict(vision=layout(dp=2), llm=layout(dp=2), world_size=2),
    "cp 3 pp 2": dict(vision=layout(dp=6), llm=layout(cp=3, pp=2) + CUT, world_size=6),
}


REPEATED = (0, 3, 0, 5, 0, 3, 1, 0)


def evaluate(plan: Plan, samples: Sequence[int] = range(11)) -> tuple[float, dict[int, Tensor]]:
    engine = Engine(plan, builders(plan), timeout_s=30.0)
    report = engine.evaluate(Batch.of(RaggedSource(plan.seed), samples))
    return report.loss, report.outputs


def train(plan: Plan) -> tuple[float, dict[str, Tensor]]:
    """The loss of a step on repeated samples, and this rank's gradients."""
    engine = Engine(plan, builders(plan), timeout_s=30.0)
    report = engine.step(Batch.of(RaggedSource(plan.seed), REPEATED))
    return report.loss, {name: p.grad for name, p in engine.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_one_process(ranks: Pool, case: str) -> None:
    (want,) = ranks.run(evaluate, make_plan(vision=layout(), llm=layout(), world_size=1), num_ranks=1)
    plan = make_plan(**CASES[case])
    for loss, outputs in ranks.run(evaluate, plan, num_ranks=plan.world_size):
        assert loss == pytest.approx(want[0], rel=1e-10)
        assert outputs.keys() == want[1].keys() == set(range(11))
        for index, rows in outputs.items():
            torch.testing.assert_close(rows, want[1][index], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_sample_that_is_in_a_batch_several_times_counts_as_often_and_has_its_outputs_once(
    ranks: Pool, case: str
) -> None:
    plan = make_plan(**CASES[case])
    alone = train_alone(plan, RaggedSource(plan.seed), [list(REPEATED)], learning_rate=0.0)
    for loss, gradients in ranks.run(train, plan, num_ranks=plan.world_size):
        assert loss == pytest.approx(alone.losses[0], rel=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, alone.gradients[0][name], rtol=1e-10, atol=1e-12)
    single = make_plan(vision=layout(), llm=layout(), world_size=1)
    ((_, want),) = ranks.run(evaluate, single, sorted(set(REPEATED)), num_ranks=1)
    for loss, outputs in ranks.run(evaluate, plan, REPEATED, num_ranks=plan.world_size):
        assert loss == pytest.approx(alone.losses[0], rel=1e-10)
        assert outputs.keys() == want.keys()
        for index, rows in outputs.items():
            assert torch.equal(rows, want[index])
