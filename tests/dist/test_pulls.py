"""Plans of pulled keys: every row comes from its owner, in time for the tile that holds it, and not too late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hetsched.layout.pulls import CHUNK, TILE, PullPlan, heads_of_part
from hetsched.layout.tokens import IntArray, tokens_of
from tests.dist.context_cases import ContextCase, fuzzed
from tests.dist.context_work import task_of
from tests.dist.test_context_task import mask_of
from tests.kernels.attention_cases import dense


def plans_of(case: ContextCase) -> list[PullPlan]:
    """One for each rank."""
    return [task_of(replace(case, forced="pull"), rank).pulled.plan for rank in range(case.cp)]


def packed(case: ContextCase, plans: list[PullPlan], num_parts: int) -> list[IntArray]:
    """Each rank's stage with its own rows: of token t, part p it holds ``t * parts + p``, elsewhere -1."""
    stages = []
    for rank, plan in enumerate(plans):
        stage = np.full((num_parts, plan.num_rows), -1)
        stage[:, plan.own_places] = tokens_of(case.token_map, rank) * num_parts + np.arange(num_parts)[:, None]
        stages.append(stage.ravel())
    return stages


def check(case: ContextCase, plans: list[PullPlan]) -> None:
    """Carry out every plan run by run."""
    num_parts = case.heads[1] // heads_of_part(case.heads[1])
    for rank, plan in enumerate(plans):
        stages = packed(case, plans, num_parts)
        mine = stages[rank].reshape(num_parts, -1)
        expected = np.full_like(mine, -1)
        expected[:, plan.places] = plan.tokens * num_parts + np.arange(num_parts)[:, None]
        incomplete = []
        for source, row, place, num_rows in [(rank, 0, 0, 0), *plan.runs.tolist()]:
            assert source != rank or num_rows == 0
            assert num_rows <= CHUNK
            stages[rank][place : place + num_rows] = stages[source][row : row + num_rows]
            incomplete.append((mine != expected).reshape(num_parts, -1, TILE).any(2))
        assert np.array_equal(mine, expected)
        needs = plan.needs[:, 0] + np.arange(num_parts)[:, None] * plan.needs[:, 1]
        # the number of runs after which the last row of each tile was there
        assert np.array_equal(needs, np.sum(incomplete, axis=0)), case


@pytest.mark.parametrize("cp", [1, 2, 3, 4])
def test_every_tile_waits_for_exactly_the_runs_that_it_needs(cp: int) -> None:
    for case in fuzzed(cp, num_cases=24):
        check(case, plans_of(case))


@pytest.mark.parametrize("cp", [1, 2, 3, 4])
def test_queries_see_in_the_stage_what_the_mask_shows_them(cp: int) -> None:
    for case in fuzzed(cp, num_cases=24):
        mask = mask_of(case)
        for rank in range(cp):
            own, pulled = tokens_of(case.token_map, rank), task_of(replace(case, forced="pull"), rank).pulled
            tokens, places = pulled.plan.tokens, pulled.plan.places
            seen = np.zeros((len(own), pulled.plan.num_rows), bool)
            seen[:, places] = mask[own][:, tokens]
            assert np.array_equal(dense(pulled.attention.ranges), seen), case
            assert seen.sum() == mask[own].sum(), case


def test_several_parts_and_long_runs_come_one_part_after_the_other() -> None:
    case = ContextCase((40_000, 700), 2, "zigzag", heads=(6, 6))
    plans = plans_of(case)
    check(case, plans)
    assert all(len(plan.runs) > 4 for plan in plans)


def test_rows_that_no_query_sees_stay() -> None:
    case = ContextCase((4096,), 2, "zigzag", window=64)
    assert sum(plan.runs[:, 3].sum() for plan in plans_of(case)) == 2 * 63


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, needs=np.maximum(plan.needs - [1, 0], 0)),
        lambda plan: replace(plan, runs=plan.runs[::-1]),
        lambda plan: replace(plan, runs=plan.runs + np.array([0, 1, 0, 0])),
    ],
)
def test_a_wrong_plan_is_seen(change: object) -> None:
    assert callable(change)
    case = ContextCase((9000, 600), 2, "zigzag", heads=(6, 6))
    plans = [change(plan) for plan in plans_of(case)]
    with pytest.raises(AssertionError):
        check(case, plans)
