"""Three placements train as one process does: float32, AdamW, clipping, the digits, 50 steps."""

from __future__ import annotations

from unittest import mock

import pytest

from hetsched.plan import Plan, parse_plan
from hetsched.runtime.engine import Engine
from hetsched.train.trainer import Trainer
from tests.dist.mutants import MUTANTS, apply_mutant
from tests.dist.pool import Pool

TOLERANCE = 1e-3
STEPS = 50
PLAN = """
name = "curves"
world_size = {world_size}
microbatches = 2
seed = 1
modules = {{ vision = {{ {vision} }}, llm = {{ {llm} }} }}
boundaries = [{{ producer = "vision", consumer = "llm" }}]
schedule.encoder = "{encoder}"
data = {{ batch_size = 16 }}
training = {{ steps = 50, learning_rate = 3e-3, warmup_steps = 10, clip_grad_norm = 1.0 }}

[model]
vision = {{ kind = "vision", layers = 1, hidden = 16, heads = 2, ffn = 24, patch = 4, merge = 2 }}
llm = {{ kind = "decoder", layers = 2, hidden = 24, heads = 2, kv_heads = 1, ffn = 32, vocab = 25, rotary_base = 100 }}
"""
ALONE = dict(vision="first_rank = 0", llm="first_rank = 0", world_size=1, encoder="stage0")
PLACEMENTS = {
    "homogeneous": dict(
        vision="first_rank = 0",
        llm="first_rank = 0, layout.pp = 2",
        world_size=2,
        encoder="stage0",
    ),
    "colocated": dict(
        vision="first_rank = 0, layout.dp = 2",
        llm="first_rank = 0, layout.pp = 2",
        world_size=2,
        encoder="three_phase",
    ),
    "non-colocated": dict(
        vision="first_rank = 0", llm="first_rank = 1, layout.dp = 2", world_size=3, encoder="three_phase"
    ),
}
RUNTIME_MUTANTS = [name for name in MUTANTS if name != "two swapped receives"]
"""Swapped receives of samples of different lengths cannot be run; the parity test has equal ones."""


def plan_of(placement: dict[str, object]) -> Plan:
    return parse_plan(PLAN.format(**placement))


def train(plan: Plan, num_steps: int, mutant: str | None = None) -> list[tuple[float, float]]:
    """Loss and norm of the gradients before clipping, of each step."""
    undo = apply_mutant(mutant)
    curve: list[tuple[float, float]] = []
    try:
        Trainer(plan).train(num_steps, after_step=lambda _, report, norm: curve.append((report.loss, norm)))
    finally:
        undo()
    return curve


def train_unclipped(plan: Plan, num_steps: int) -> list[tuple[float, float]]:
    """As ``train``, but the norm is known and nothing is done about it."""
    clip = Engine.clip_grad_norm
    with mock.patch.object(Engine, "clip_grad_norm", lambda self, _: clip(self, float("inf"))):
        return train(plan, num_steps)


@pytest.fixture(scope="module")
def curve(ranks: Pool) -> list[tuple[float, float]]:
    """That of one process."""
    return ranks.run(train, plan_of(ALONE), STEPS, num_ranks=1)[0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_placement_has_the_curve_of_one_process(
    ranks: Pool, placement: str, curve: list[tuple[float, float]]
) -> None:
    plan = plan_of(PLACEMENTS[placement])
    found = ranks.run(train, plan, STEPS, num_ranks=plan.world_size)
    for rank in found:
        assert rank == [pytest.approx(step, rel=TOLERANCE) for step in curve]


def test_the_curve_falls_and_its_gradients_are_clipped(curve: list[tuple[float, float]]) -> None:
    losses, norms = zip(*curve, strict=True)
    assert losses[-1] < 0.8 * losses[0]
    assert min(norms) < 1.0 < max(norms)


@pytest.mark.parametrize("mutant", RUNTIME_MUTANTS)
def test_a_wrong_runtime_has_another_curve(ranks: Pool, mutant: str, curve: list[tuple[float, float]]) -> None:
    found = ranks.run(train, plan_of(PLACEMENTS["colocated"]), 6, mutant, num_ranks=2)[0]
    assert differs(found, curve[:6])


def test_training_without_clipping_has_another_curve(ranks: Pool, curve: list[tuple[float, float]]) -> None:
    found = ranks.run(train_unclipped, plan_of(PLACEMENTS["colocated"]), 12, num_ranks=2)[0]
    assert differs(found, curve[:12])


def differs(found: list[tuple[float, float]], wanted: list[tuple[float, float]]) -> bool:
    return found != [pytest.approx(step, rel=10 * TOLERANCE) for step in wanted]
