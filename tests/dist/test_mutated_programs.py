"""A sound program with a random change is refused by the checker, or still has the gradients of one process."""

from __future__ import annotations

import random
from unittest import mock

import pytest

from hetsched import stepplan
from hetsched.check.validate import validate
from hetsched.errors import ScheduleError
from hetsched.plan import Plan
from hetsched.schedule.action import Action, parse_action
from hetsched.schedule.program import Program
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.test_parity import check_against, expected, layout
from tests.dist.work import RankTrained, train_on_ranks

NUM_MUTATIONS = 120
MOST_RUN = 16


def plan_of(pipeline: str) -> Plan:
    return make_plan(
        vision=layout(dp=2),
        llm=layout(pp=2),
        world_size=2,
        microbatches=3,
        schedule=f'pipeline = "{pipeline}"',
    )


def mutate(program: Program, seed: int) -> Program:
    """Move, swap, drop or double one action of one lane."""
    draw = random.Random(seed)
    lanes = [list(lane) for lane in program.lanes]
    lane = draw.choice(lanes)
    i, j = draw.sample(range(len(lane)), 2)
    kind = draw.choice(["move", "swap neighbors", "swap neighbors", "swap", "drop", "double"])
    if kind == "move":
        lane.insert(j, lane.pop(i))
    elif kind == "swap":
        lane[i], lane[j] = lane[j], lane[i]
    elif kind == "swap neighbors":
        k = min(i, len(lane) - 2)
        lane[k], lane[k + 1] = lane[k + 1], lane[k]
    elif kind == "drop":
        del lane[i]
    else:
        lane.insert(j, lane[i])
    return Program(program.topology, program.num_microbatches, tuple(map(tuple, lanes)))


def is_sound(program: Program) -> bool:
    try:
        validate(program)
    except ScheduleError:
        return False
    return True


def run_program(plan: Plan, lanes: list[list[str]]) -> RankTrained:
    """Train with the given lanes in place of the plan's own."""
    own = stepplan.step_program(plan)
    parsed: tuple[tuple[Action, ...], ...] = tuple(tuple(map(parse_action, lane)) for lane in lanes)
    changed = Program(own.topology, own.num_microbatches, parsed)
    with mock.patch.object(stepplan, "step_program", return_value=changed):
        return train_on_ranks(plan, "many")


@pytest.mark.parametrize("pipeline", ["1f1b", "zb-h1"])
def test_a_changed_program_is_refused_or_still_right(ranks: Pool, pipeline: str) -> None:
    plan = plan_of(pipeline)
    program = stepplan.step_program(plan)
    changed = [mutate(program, seed) for seed in range(NUM_MUTATIONS)]
    accepted = {p.lanes: p for p in changed if p.lanes != program.lanes and is_sound(p)}
    assert len(accepted) < NUM_MUTATIONS / 2, "the checker refuses too little to be a checker"
    assert len(accepted) >= MOST_RUN / 2, "too few changes are harmless to learn anything from running them"
    for program in list(accepted.values())[:MOST_RUN]:
        lanes = [[str(action) for action in lane] for lane in program.lanes]
        check_against(ranks.run(run_program, plan, lanes, num_ranks=2), expected(plan, "many"))
