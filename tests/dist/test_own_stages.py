"""A user's own stages, whose autograd Function owns a weight, under every schedule that splits the backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetsched import Batch, Engine, StageMeta, parse_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.reference import meta_of

HIDDEN, NUM_STAGES = 12, 4


class Scale(torch.autograd.Function):
    """``rows * weight``, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        return gradients[0] * weight, (gradients[0] * rows).sum(0)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Linear(16, HIDDEN, dtype=torch.float64)

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor:
        return self.inner(meta.inputs["patches"]).tanh().unflatten(0, (-1, 4)).sum(1)


class Sink(nn.Module):
    """Embedding first, loss last, a scaled linear layer everywhere."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        torch.manual_seed(10 + stage)
        self.stage = stage
        self.linear = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
        self.weight = nn.Parameter(torch.rand(HIDDEN, dtype=torch.float64) + 0.5)
        if stage == 0:
            self.embed = nn.Embedding(50, HIDDEN, dtype=torch.float64)

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor | tuple[Tensor, Tensor]:
        if self.stage == 0:
            rows = self.embed(meta.inputs["ids"])
            for entering in meta.boundary.values():
                rows = rows.index_copy(0, entering.index, entering.rows)
        assert rows is not None
        rows = rows + Scale.apply(self.linear(rows).tanh(), self.weight)  # type: ignore[no-untyped-call]
        if self.stage < NUM_STAGES - 1:
            return rows
        is_target = meta.inputs["labels"] >= 0
        return rows[is_target].square().sum(), is_target.sum()


def plan_of(pipeline: str) -> str:
    pp, vpp = (4, 1) if pipeline == "zb-h1" else (2, 2)
    return f"""
name = "own"
world_size = {pp}
microbatches = 4
dtype = "float64"
schedule.pipeline = "{pipeline}"
boundaries = [{{ producer = "vision", consumer = "llm" }}]
modules.vision = {{ hidden = {HIDDEN}, first_rank = 0, layout.dp = {pp} }}
modules.llm = {{ hidden = {HIDDEN}, first_rank = 0, layout = {{ pp = {pp}, vpp = {vpp} }} }}
"""


def run_own(pipeline: str) -> dict[str, Tensor]:
    builders = {"vision": lambda stage, mesh: Encoder(), "llm": lambda stage, mesh: Sink(stage)}
    engine = Engine(parse_plan(plan_of(pipeline)), builders)
    engine.step(Batch.of(RaggedSource(5), range(11)))
    return {
        f"{module}.{stage}.{name}": p.grad.clone()
        for (module, stage), built in engine.stages.items()
        for name, p in built.named_parameters()
        if p.grad is not None
    }


def in_one_process() -> dict[str, Tensor]:
    source = RaggedSource(5)
    encoder, stages = Encoder(), [Sink(stage) for stage in range(NUM_STAGES)]
    total, weight = torch.zeros((), dtype=torch.float64), 0
    for sample in map(source.describe, range(11)):
        rows: Tensor | tuple[Tensor, Tensor] | None = None
        inputs = dict(source.load_sample(sample.index))
        embedded = stages[0].embed(inputs["ids"])
        for p in sample.placeholders:
            item = meta_of([p.item.num_inputs], dict(source.load_item("vision", p.item.key)), {})
            index = torch.arange(p.start, p.start + p.item.num_rows)
            embedded = embedded.index_copy(0, index, encoder(None, item))
        rows = embedded
        for stage in stages:
            rows = rows + Scale.apply(stage.linear(rows).tanh(), stage.weight)
        is_target = inputs["labels"] >= 0
        total, weight = total + rows[is_target].square().sum(), weight + int(is_target.sum())
    (total / weight).backward()
    named = {f"vision.0.{n}": p.grad for n, p in encoder.named_parameters()}
    return named | {f"llm.{s.stage}.{n}": p.grad for s in stages for n, p in s.named_parameters()}


@pytest.mark.parametrize("pipeline", ["zb-h1", "zb-v", "dualpipev"])
def test_an_autograd_function_that_owns_a_weight_has_exact_gradients(ranks: Pool, pipeline: str) -> None:
    found = ranks.run(run_own, pipeline, num_ranks=4 if pipeline == "zb-h1" else 2)
    want = in_one_process()
    assert {name for rank in found for name in rank} == set(want)
    for rank in found:
        for name, gradient in rank.items():
            assert want[name].any()
            torch.testing.assert_close(gradient, want[name], rtol=1e-10, atol=1e-12)
