"""A batch that was prepared during the step before gives the same step; see test_bad_jobs for its faults."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from hetsched.batch import Batch
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime import engine as engine_module
from hetsched.runtime.channels import Channels
from hetsched.runtime.engine import Engine
from hetsched.runtime.prepare import Prepared
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.test_parity import layout

PLAN = make_plan(vision=layout(dp=2), llm=layout(pp=2), world_size=2)
Step = tuple[float, list[torch.Tensor]]


def train(is_ahead: bool) -> tuple[list[Step], list[str]]:
    """Loss and gradients of three steps, and the order in which steps were prepared and ended."""
    engine, source, order = Engine(PLAN, builders(PLAN), timeout_s=30.0), RaggedSource(PLAN.seed), []
    batches = [Batch.of(source, range(7 * i, 7 * i + 7)) for i in range(3)]
    prepare = engine_module.prepare

    def noted(plan: Plan, batch: Batch, channels: Channels, **options: Any) -> Prepared:
        order.append(f"prepared {batches.index(batch)}")
        return prepare(plan, batch, channels, **options)

    steps = []
    with mock.patch.object(engine_module, "prepare", noted):
        for i, batch in enumerate(batches):
            report = engine.step(batch, upcoming=batches[i + 1] if is_ahead and i < 2 else None)
            order.append(f"ended {i}")
            steps.append((report.loss, [p.grad.clone() for p in engine.parameters() if p.grad is not None]))
    return steps, order


def test_steps_are_the_same_and_are_prepared_once_before_the_last_one_ends(ranks: Pool) -> None:
    every = [ranks.run(train, is_ahead, num_ranks=2) for is_ahead in (False, True)]
    for (want, apart), (found, ahead) in zip(*every, strict=True):
        assert apart == ["prepared 0", "ended 0", "prepared 1", "ended 1", "prepared 2", "ended 2"]
        assert ahead == ["prepared 0", "prepared 1", "ended 0", "prepared 2", "ended 1", "ended 2"]
        for (loss, gradients), (other_loss, others) in zip(want, found, strict=True):
            assert loss == other_loss
            assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
