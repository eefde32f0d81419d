"""The bytes that cross ranks are the analytic minimum: each row that a rank lacks crosses once, each way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from hetsched import stepplan
from hetsched.layout.crossing import Crossing
from hetsched.plan import Plan
from hetsched.stepplan import StepPlan, plan_step
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.work import batches, train_on_ranks
from tests.plan.batches import shares_of

FLOAT64 = 8
CASES = {
    "homogeneous": (dict(vision="first_rank = 0", llm="first_rank = 0\nlayout.pp = 2", world_size=2), "stage0"),
    "homogeneous, dp 2": (
        dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout = { dp = 2, pp = 2 }", world_size=4),
        "stage0",
    ),
    "colocated": (dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.pp = 2", world_size=2), ""),
    "colocated, LLM dp 2": (
        dict(vision="first_rank = 0\nlayout.dp = 4", llm="first_rank = 0\nlayout = { dp = 2, pp = 2 }", world_size=4),
        "",
    ),
    "colocated, LLM cp 3": (
        dict(
            vision="first_rank = 0\nlayout.dp = 3",
            llm="first_rank = 0\nlayout = { cp = 3, pp = 2 }\nshortest_cut = 1",
            world_size=6,
        ),
        "",
    ),
    "colocated, frozen encoder": (
        dict(vision="first_rank = 0\nlayout.dp = 2\nfrozen = true", llm="first_rank = 0\nlayout.pp = 2", world_size=2),
        "",
    ),
    "non-colocated": (
        dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 2\nlayout.dp = 3", world_size=5),
        "",
    ),
    "non-colocated, encoder in two stages": (
        dict(vision="first_rank = 0\nlayout.pp = 2", llm="first_rank = 2\nlayout.pp = 2", world_size=4),
        "",
    ),
    "partly overlapping": (
        dict(vision="first_rank = 0\nlayout.dp = 3", llm="first_rank = 2\nlayout.dp = 2", world_size=4),
        "",
    ),
}


def plan_of(case: str) -> Plan:
    parts, encoder = CASES[case]
    return make_plan(**parts, schedule=f'encoder = "{encoder}"' if encoder else "")


def steps_of(plan: Plan) -> Iterator[StepPlan]:
    source = RaggedSource(plan.seed)
    for batch in batches("many"):
        yield plan_step(plan, [source.describe(index) for index in batch])


def lacking_rows(plan: Plan, step: StepPlan) -> Iterator[tuple[int, int]]:
    """(rank that makes a row, rank that wants it and does not have it), once for each use, from the shares alone."""
    source, sink = plan.grids["vision"], plan.grids["llm"]
    for m in range(plan.microbatches):
        maker_of = {
            item.key: source.rank(dp=dp, pp=source.layout.pp - 1)
            for dp, share in enumerate(shares_of(step, "vision", m))
            for item in share.members
        }
        for dp, held in enumerate(step.shares["llm", m]):
            for cp in range(sink.layout.cp):
                wanting, kept = sink.rank(dp=dp, cp=cp, pp=0), set(held.positions(cp).tolist())
                for row, placeholder in held.share.placeholders("vision"):
                    num_rows = len(kept.intersection(range(row, row + placeholder.item.num_rows)))
                    if maker_of[placeholder.item.key] != wanting:
                        yield from [(maker_of[placeholder.item.key], wanting)] * num_rows


def least_bytes(plan: Plan, step: StepPlan) -> tuple[int, int]:
    """The least that a training step can send: over the boundary, and between the stages of each module."""
    num_ways = 1 if plan.modules["vision"].frozen else 2
    boundary = num_ways * len(list(lacking_rows(plan, step))) * plan.hidden("llm")
    stages = 0
    for module, m in step.shares:
        ways = num_ways if module == "vision" else 2
        edges = plan.modules[module].layout.num_stages - 1
        stages += ways * edges * sum(share.num_tokens for share in shares_of(step, module, m)) * plan.hidden(module)
    return boundary * FLOAT64, stages * FLOAT64


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_of_every_step_are_the_least(ranks: Pool, case: str) -> None:
    plan = plan_of(case)
    found = ranks.run(train_on_ranks, plan, "many", num_ranks=plan.world_size)
    least = [least_bytes(plan, step) for step in steps_of(plan)]
    for rank in found:
        assert [sent - stages for sent, (_, stages) in zip(rank.sent_bytes, least, strict=True)] == [
            boundary for boundary, _ in least
        ]


def test_the_cases_are_those_that_count() -> None:
    """With one replica all rows stay where they are; elsewhere some go, and an image is used on two replicas."""
    lacking = {case: [list(lacking_rows(plan_of(case), step)) for step in steps_of(plan_of(case))] for case in CASES}
    for case, steps in lacking.items():
        assert all(bool(step) != (case == "homogeneous") for step in steps), case
    plan = plan_of("colocated, LLM dp 2")
    uses = [
        {
            (m, p.item.key, dp)
            for dp, share in enumerate(shares_of(step, "llm", m))
            for _, p in share.placeholders("vision")
        }
        for step in steps_of(plan)
        for m in range(plan.microbatches)
    ]
    assert any(len({(m, key) for m, key, _ in each}) < len(each) for each in uses)


def test_a_row_that_crosses_twice_is_noticed(ranks: Pool) -> None:
    plan = plan_of("colocated")
    wasteful = ranks.run(train_wastefully, plan, num_ranks=2)
    least = [sum(least_bytes(plan, step)) for step in steps_of(plan)]
    assert all(sent > bound for sent, bound in zip(wasteful[0], least, strict=True))


def train_wastefully(plan: Plan) -> list[int]:
    """The bytes of steps whose rows come one more time than they are used."""
    original = stepplan.cross

    def cross(*args: object, **kwargs: object) -> Crossing:
        crossing = original(*args, **kwargs)  # type: ignore[arg-type]
        again = crossing.forward[crossing.forward[:, 0] != crossing.forward[:, 2]]
        return replace(crossing, forward=np.concatenate([crossing.forward, again[:1]]))

    with mock.patch.object(stepplan, "cross", cross):
        return train_on_ranks(plan, "many").sent_bytes
