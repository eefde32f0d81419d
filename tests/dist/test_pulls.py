"""Plans of pulled rows: every row comes from its owner, in time for the tile that holds it, and not too late."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from hetsched.layout.pulls import CHUNK, TILE, PullPlan, heads_of_part
from hetsched.layout.tokens import IntArray, tokens_of
from hetsched.parallel.context_task import Pulled
from tests.dist.context_cases import ContextCase, fuzzed
from tests.dist.context_work import task_of
from tests.dist.test_context_task import mask_of
from tests.kernels.attention_cases import dense

Side = Literal["keys", "queries"]
SIDES: tuple[Side, ...] = ("keys", "queries")


def pulled_by(case: ContextCase, rank: int, side: Side) -> Pulled:
    """What a rank pulls, keys forward or queries backward."""
    task = task_of(replace(case, forced="pull"), rank)
    return task.pulled if side == "keys" else task.pulled_back


def plans_of(case: ContextCase, side: Side = "keys") -> list[PullPlan]:
    """One for each rank."""
    return [pulled_by(case, rank, side).plan for rank in range(case.cp)]


def num_parts_of(case: ContextCase, side: Side) -> int:
    return case.heads[1] // heads_of_part(case.heads[1]) if side == "keys" else 1


def packed(case: ContextCase, plans: list[PullPlan], num_parts: int) -> list[IntArray]:
    """Each rank's stage with its own rows: of token t, part p it holds ``t * parts + p``, elsewhere -1."""
    stages = []
    for rank, plan in enumerate(plans):
        stage = np.full((num_parts, plan.num_rows), -1)
        rows, places = plan.own
        stage[:, places] = tokens_of(case.token_map, rank)[rows] * num_parts + np.arange(num_parts)[:, None]
        stages.append(stage.ravel())
    return stages


def is_cut(case: ContextCase) -> IntArray:
    """Of each token, whether its document is on several ranks."""
    owner = np.zeros(sum(case.lengths), np.int64)
    for rank in range(case.cp):
        owner[tokens_of(case.token_map, rank)] = rank
    documents = itertools.pairwise(case.cu_seqlens)
    return np.concatenate([np.full(b - a, len(set(owner[a:b].tolist())) > 1) for a, b in documents])


def check(case: ContextCase, plans: list[PullPlan], side: Side = "keys") -> None:
    """Carry out every plan run by run."""
    num_parts, cut = num_parts_of(case, side), is_cut(case)
    for rank, plan in enumerate(plans):
        stages = packed(case, plans, num_parts)
        mine = stages[rank].reshape(num_parts, -1)
        expected = np.full_like(mine, -1)
        is_staged = cut[plan.tokens]
        staged, places = plan.tokens[is_staged], plan.places[is_staged]
        expected[:, places] = staged * num_parts + np.arange(num_parts)[:, None]
        own = tokens_of(case.token_map, rank)
        assert np.array_equal(own[plan.places[~is_staged] - plan.num_rows], plan.tokens[~is_staged])
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


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("cp", [1, 2, 3, 4])
def test_every_tile_waits_for_exactly_the_runs_that_it_needs(cp: int, side: Side) -> None:
    for case in fuzzed(cp, num_cases=24):
        check(case, plans_of(case, side), side)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("cp", [1, 2, 3, 4])
def test_queries_see_in_the_stage_what_the_mask_shows_them(cp: int, side: Side) -> None:
    for case in fuzzed(cp, num_cases=24):
        mask = mask_of(case) if side == "keys" else mask_of(case).T
        for rank in range(cp):
            own, pulled = tokens_of(case.token_map, rank), pulled_by(case, rank, side)
            tokens, places = pulled.plan.tokens, pulled.plan.places
            met = np.zeros((len(own), pulled.plan.num_rows + len(own)), bool)
            met[:, places] = mask[own][:, tokens]
            ranges = dense(pulled.attention.ranges)
            assert np.array_equal(ranges if side == "keys" else ranges.T, met), case
            assert met.sum() == mask[own].sum(), case


def test_several_parts_and_long_runs_come_one_part_after_the_other() -> None:
    case = ContextCase((40_000, 700), 2, "zigzag", heads=(6, 6))
    plans = plans_of(case)
    check(case, plans)
    assert all(len(plan.runs) > 4 for plan in plans)


def test_rows_that_nobody_else_meets_stay() -> None:
    case = ContextCase((4096,), 2, "zigzag", window=64)
    for side in SIDES:
        assert sum(plan.runs[:, 3].sum() for plan in plans_of(case, side)) == 2 * 63


def test_documents_that_are_whole_on_a_rank_are_not_staged() -> None:
    case = ContextCase((3000, 300, 300), 2, "planned")
    for side in SIDES:
        plans = plans_of(case, side)
        own = [set(tokens_of(case.token_map, rank).tolist()) for rank in range(2)]
        assert any(3000 in tokens for tokens in own)
        for rank, plan in enumerate(plans):
            assert plan.own.shape[1] == sum(token < 3000 for token in own[rank])
            assert plan.num_rows <= -(-3000 // TILE) * TILE


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, needs=np.maximum(plan.needs - [1, 0], 0)),
        lambda plan: replace(plan, runs=plan.runs[::-1]),
        lambda plan: replace(plan, runs=plan.runs + np.array([0, 1, 0, 0])),
        lambda plan: replace(plan, own=plan.own[:, 1:]),
        lambda plan: replace(plan, places=plan.places + (plan.places >= plan.num_rows)),
    ],
)
def test_a_wrong_plan_is_seen(change: object, side: Side) -> None:
    assert callable(change)
    case = ContextCase((9000, 600, 130, 1500), 2, "planned", heads=(6, 6))
    plans = plans_of(case, side)
    assert any((plan.places >= plan.num_rows).any() for plan in plans)
    check(case, plans, side)
    with pytest.raises((AssertionError, IndexError)):
        check(case, [change(plan) for plan in plans], side)
