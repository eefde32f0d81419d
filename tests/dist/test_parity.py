"""Every placement gives the gradients and weights of one process, to 1e-10 in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache

import pytest
import torch
from torch import Tensor

from hetsched.errors import DataError
from hetsched.plan import Plan
from hetsched.stepplan import plan_step
from tests.dist.mutants import MUTANTS
from tests.dist.plans import make_plan
from tests.dist.pool import Pool, RanksFailed
from tests.dist.reference import Trained, train_alone
from tests.dist.work import LEARNING_RATE, RankTrained, batches, source_of, train_on_ranks

TOLERANCE = 1e-10


def layout(first_rank: int = 0, **degrees: int) -> str:
    return f"first_rank = {first_rank}\nlayout = {{ {', '.join(f'{k} = {v}' for k, v in degrees.items())} }}"


CUT = "\nshortest_cut = 1"
STAGE0 = 'encoder = "stage0"'
CASES = {
    "one process": (dict(vision=layout(), llm=layout(), world_size=1), "many"),
    "homogeneous dp 2": (dict(vision=layout(dp=2), llm=layout(dp=2), world_size=2, schedule=STAGE0), "many"),
    "homogeneous dp 4": (dict(vision=layout(dp=4), llm=layout(dp=4), world_size=4), "many"),
    "homogeneous pp 2": (dict(vision=layout(), llm=layout(pp=2), world_size=2, schedule=STAGE0), "many"),
    "homogeneous dp 2 pp 2": (dict(vision=layout(dp=2), llm=layout(dp=2, pp=2), world_size=4, schedule=STAGE0), "many"),
    "homogeneous pp 4": (dict(vision=layout(), llm=layout(pp=4), world_size=4, schedule=STAGE0), "many"),
    "colocated dp 2, pp 2": (dict(vision=layout(dp=2), llm=layout(pp=2), world_size=2), "many"),
    "colocated dp 4, pp 4": (dict(vision=layout(dp=4), llm=layout(pp=4), world_size=4), "many"),
    "colocated dp 4, dp 2 pp 2": (dict(vision=layout(dp=4), llm=layout(dp=2, pp=2), world_size=4), "many"),
    "colocated dp 8, dp 2 pp 4": (dict(vision=layout(dp=8), llm=layout(dp=2, pp=4), world_size=8), "many"),
    "colocated dp 4, pp 4, stage0": (
        dict(vision=layout(dp=4), llm=layout(pp=4), world_size=4, schedule=STAGE0),
        "many",
    ),
    "colocated, few items": (dict(vision=layout(dp=4), llm=layout(pp=4), world_size=4), "few"),
    "colocated, text only": (dict(vision=layout(dp=2), llm=layout(pp=2), world_size=2), "none"),
    "colocated, encoder frozen": (
        dict(vision=layout(dp=4) + "\nfrozen = true", llm=layout(pp=4), world_size=4),
        "many",
    ),
    "colocated, LLM frozen": (dict(vision=layout(dp=2), llm=layout(pp=2) + "\nfrozen = true", world_size=2), "many"),
    "colocated dp 2, cp 2": (dict(vision=layout(dp=2), llm=layout(cp=2) + CUT, world_size=2), "many"),
    "colocated dp 4, cp 4": (dict(vision=layout(dp=4), llm=layout(cp=4) + CUT, world_size=4), "many"),
    "colocated dp 4, cp 2 dp 2": (dict(vision=layout(dp=4), llm=layout(cp=2, dp=2) + CUT, world_size=4), "many"),
    "colocated dp 4, cp 2 pp 2": (dict(vision=layout(dp=4), llm=layout(cp=2, pp=2) + CUT, world_size=4), "many"),
    "colocated dp 8, cp 4 pp 2, fill": (
        dict(vision=layout(dp=8), llm=layout(cp=4, pp=2) + CUT, world_size=8, schedule='encoder = "fill"'),
        "many",
    ),
    "colocated, cp 2, samples whole": (dict(vision=layout(dp=2), llm=layout(cp=2), world_size=2), "many"),
    "colocated, cp 4, few items": (dict(vision=layout(dp=4), llm=layout(cp=4) + CUT, world_size=4), "few"),
    "colocated, cp 2 pp 2, zb-v": (
        dict(vision=layout(dp=4), llm=layout(cp=2, pp=2, vpp=2) + CUT, world_size=4, schedule='pipeline = "zb-v"'),
        "many",
    ),
    "non-colocated dp 2 + cp 3": (dict(vision=layout(dp=2), llm=layout(2, cp=3) + CUT, world_size=5), "many"),
    "non-colocated dp 1 + cp 3 dp 2": (dict(vision=layout(), llm=layout(1, cp=3, dp=2) + CUT, world_size=7), "many"),
    "non-colocated dp 2 + cp 2 pp 2, stage0": (
        dict(vision=layout(dp=2), llm=layout(2, cp=2, pp=2) + CUT, world_size=6, schedule=STAGE0),
        "many",
    ),
    "partly overlapping, cp 2 pp 2": (
        dict(vision=layout(dp=4), llm=layout(2, cp=2, pp=2) + CUT, world_size=6),
        "many",
    ),
    "non-colocated 1 + 1": (dict(vision=layout(), llm=layout(1), world_size=2, schedule=STAGE0), "many"),
    "non-colocated dp 3 + dp 2": (dict(vision=layout(dp=3), llm=layout(3, dp=2), world_size=5), "many"),
    "non-colocated dp 2 + dp 3, stage0": (
        dict(vision=layout(dp=2), llm=layout(2, dp=3), world_size=5, schedule=STAGE0),
        "many",
    ),
    "non-colocated dp 2 + dp 3 pp 2": (dict(vision=layout(dp=2), llm=layout(2, dp=3, pp=2), world_size=8), "many"),
    "non-colocated dp 1 + pp 2, few items": (dict(vision=layout(), llm=layout(1, pp=2), world_size=3), "few"),
    "non-colocated pp 2 + dp 2": (dict(vision=layout(pp=2), llm=layout(2, dp=2), world_size=4), "many"),
    "non-colocated, encoder frozen": (
        dict(vision=layout(dp=2) + "\nfrozen = true", llm=layout(2, pp=2), world_size=4),
        "many",
    ),
    "encoder on the LLM's last rank, stage0": (
        dict(vision=layout(1), llm=layout(pp=2), world_size=2, schedule=STAGE0),
        "many",
    ),
    "encoder pp 2 on the ranks of LLM pp 2, stage0": (
        dict(vision=layout(pp=2), llm=layout(pp=2), world_size=2, schedule=STAGE0),
        "many",
    ),
    "encoder pp 2 half on the LLM, stage0": (
        dict(vision=layout(pp=2), llm=layout(1, pp=2), world_size=3, schedule=STAGE0),
        "many",
    ),
    "partly overlapping": (dict(vision=layout(dp=4), llm=layout(2, dp=2, pp=2), world_size=6), "many"),
    "partly overlapping, replicas of a V on different lanes": (
        dict(vision=layout(1, dp=2), llm=layout(dp=2, pp=2, vpp=2), world_size=4, schedule='pipeline = "zb-v"'),
        "many",
    ),
}
WITHOUT_GRADIENT = {"colocated, text only": "vision."}
"""Cases in which the named parameters have a gradient of zero: no item reaches the encoder."""


@lru_cache(maxsize=8)
def truth(modules: tuple[str, ...], frozen: tuple[str, ...], items: str) -> Trained:
    tables = {name: layout() + ("\nfrozen = true" if name in frozen else "") for name in modules}
    plan = make_plan(**tables, world_size=1)
    return train_alone(plan, source_of(plan, items), batches(items), learning_rate=LEARNING_RATE)


def expected(plan: Plan, items: str) -> Trained:
    frozen = tuple(name for name, module in plan.modules.items() if module.frozen)
    return truth(tuple(plan.modules), frozen, items)


def check_against(found: list[RankTrained], want: Trained, *, zero: str = "") -> None:
    """Every gradient of every step on every rank, and the final weights; together the ranks have all parameters."""
    for step, reference in enumerate(want.gradients):
        seen = set()
        for rank, trained in enumerate(found):
            for name, gradient in trained.gradients[step].items():
                check_close(gradient, reference.get(name), f"step {step}, rank {rank}, {name}", may_be_zero=zero)
                seen.add(name)
        assert seen >= set(reference), f"no rank has {set(reference) - seen}"
        for trained in found:
            assert trained.losses[step] == pytest.approx(want.losses[step], rel=TOLERANCE)
    for trained in found:
        for name, weight in trained.weights.items():
            torch.testing.assert_close(weight, want.weights[name], rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def check_close(found: Tensor, want: Tensor | None, what: str, *, may_be_zero: str) -> None:
    if want is None or not want.any():
        assert may_be_zero and may_be_zero in what, f"{what}: the reference has no gradient"
        assert not found.any(), what
        return
    error, scale = float((found - want).abs().max()), float(want.abs().max())
    assert error <= TOLERANCE * scale, f"{what}: off by {error / scale:.1e} of its largest entry"


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_weights_equal_those_of_one_process(ranks: Pool, case: str) -> None:
    parts, items = CASES[case]
    plan = make_plan(**parts)
    found = ranks.run(train_on_ranks, plan, items, num_ranks=plan.world_size)
    check_against(found, expected(plan, items), zero=WITHOUT_GRADIENT.get(case, ""))


def tightest(plan: Plan, items: str) -> Plan:
    """The plan with the least capacity that holds each of its batches."""
    source = source_of(plan, items)
    samples = [tuple(map(source.describe, batch)) for batch in batches(items)]
    for capacity in range(1, 1000):
        limited = replace(plan, capacity=capacity)
        try:
            packed = [plan_step(limited, batch) for batch in samples]
        except DataError:
            continue
        assert any(a.shares != plan_step(plan, batch).shares for a, batch in zip(packed, samples, strict=True))
        return limited
    raise AssertionError("no capacity holds the batches")


CROWDED = {
    "colocated": dict(vision=layout(dp=4), llm=layout(dp=2, pp=2), world_size=4, microbatches=2),
    "non-colocated": dict(vision=layout(dp=2), llm=layout(2, dp=3), world_size=5, microbatches=1),
}


@pytest.mark.parametrize("case", CROWDED)
def test_microbatches_packed_to_their_capacity_give_the_same_gradients(ranks: Pool, case: str) -> None:
    plan = tightest(make_plan(**CROWDED[case]), "many")
    check_against(ranks.run(train_on_ranks, plan, "many", num_ranks=plan.world_size), expected(plan, "many"))


NOTICING = make_plan(vision=layout(dp=4), llm=layout(dp=2, pp=2), world_size=4)


@cache
def check_that_the_right_runtime_passes(ranks: Pool, items: str) -> None:
    check_against(ranks.run(train_on_ranks, NOTICING, items, num_ranks=4), expected(NOTICING, items))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_runtime_is_noticed(ranks: Pool, mutant: str) -> None:
    items = "equal" if mutant == "two swapped receives" else "many"
    check_that_the_right_runtime_passes(ranks, items)
    with pytest.raises((AssertionError, RanksFailed)):
        check_against(ranks.run(train_on_ranks, NOTICING, items, mutant, num_ranks=4), expected(NOTICING, items))
