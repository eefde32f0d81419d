"""Step plans: the same everywhere, nothing lost, nothing twice, and wrong descriptions refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.batch import Item, Placeholder, Sample
from hetsched.errors import DataError
from hetsched.graph import make_topology
from hetsched.layout.held import Held
from hetsched.plan import Plan
from hetsched.schedule.action import Kind
from hetsched.stepplan import StepPlan, plan_step
from hetsched.stepprogram import typical_placement
from tests.plan.batches import batches, item_of, shares_of
from tests.plan.plan_texts import plan_of

ROOT = Path(__file__).resolve().parents[2]
PLANS = {
    "homogeneous": plan_of(
        "first_rank = 0", "first_rank = 0, layout.pp = 2", world_size=2, schedule='encoder = "stage0"'
    ),
    "colocated": plan_of(
        "first_rank = 0, layout.dp = 4", "first_rank = 0, layout = { dp = 2, pp = 2 }", world_size=4, microbatches=3
    ),
    "non-colocated": plan_of("first_rank = 0, layout.dp = 2", "first_rank = 2, layout.dp = 3", world_size=5),
    "overlapping": plan_of("first_rank = 0, layout.dp = 3", "first_rank = 2, layout.pp = 2", world_size=4),
    "frozen encoder": plan_of("first_rank = 0, frozen = true", "first_rank = 1", world_size=2),
}
plans = st.sampled_from(sorted(PLANS)).map(PLANS.__getitem__)


def check_complete(plan: Plan, samples: Sequence[Sample], step: StepPlan) -> None:
    """Each sample in one share; in each microbatch each item that it uses in one share; one divisor."""
    found = [
        member for m in range(plan.microbatches) for share in shares_of(step, "llm", m) for member in share.members
    ]
    assert Counter(found) == Counter(samples)
    for m in range(plan.microbatches):
        assert len(shares_of(step, "llm", m)) == plan.modules["llm"].layout.dp
        assert len(shares_of(step, "vision", m)) == plan.modules["vision"].layout.dp
        used = {p.item for share in shares_of(step, "llm", m) for sample in share.members for p in sample.placeholders}
        assert Counter(item for share in shares_of(step, "vision", m) for item in share.members) == Counter(used)
    assert step.divisor == sum(sample.weight for sample in samples)


@given(plans, batches(max_samples=12))
def test_every_sample_is_there_once_and_every_item_once_in_each_microbatch(
    plan: Plan, samples: tuple[Sample, ...]
) -> None:
    check_complete(plan, samples, plan_step(plan, samples))


@pytest.mark.parametrize("fault", ["a sample lost", "an item lost", "an item twice", "another divisor"])
def test_an_incomplete_step_plan_fails_that_check(fault: str) -> None:
    plan, samples = PLANS["colocated"], tuple(Sample(i, 9, 1, (Placeholder(item_of(i), 2),)) for i in range(6))
    step = plan_step(plan, samples)
    check_complete(plan, samples, step)
    module = "llm" if fault == "a sample lost" else "vision"
    replicas = list(step.shares[module, 0])
    number, share = next((i, held.share) for i, held in enumerate(replicas) if held.share.members)
    if fault != "another divisor":
        members = share.members * 2 if fault == "an item twice" else share.members[1:]
        replicas[number] = Held(replace(share, members=members))
    shares = {**step.shares, (module, 0): tuple(replicas)}
    wrong = replace(step, shares=shares, divisor=step.divisor + (fault == "another divisor"))
    with pytest.raises(AssertionError):
        check_complete(plan, samples, wrong)


@given(plans, batches())
def test_the_same_batch_has_the_same_step_plan(plan: Plan, samples: tuple[Sample, ...]) -> None:
    typical_placement.cache_clear()
    one = plan_step(plan, samples)
    typical_placement.cache_clear()
    assert plan_step(plan, samples) == one


def test_another_process_with_another_hash_seed_has_the_same_step_plan() -> None:
    printed = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", "from tests.plan.test_stepplan import digest; print(digest())"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        printed.add(subprocess.run(command, capture_output=True, check=True, cwd=ROOT, env=environment).stdout)
    assert len(printed) == 1


def digest() -> str:
    """All that is decided for one batch under every plan."""
    placeholders = [tuple(Placeholder(item_of(7 * i % 5 + j), 5 * j) for j in range(i % 4)) for i in range(9)]
    samples = [Sample(i, 20, 1, each) for i, each in enumerate(placeholders)]
    return repr([plan_step(plan, samples) for plan in PLANS.values()])


def test_evaluation_does_no_more_than_forwards() -> None:
    samples = [Sample(0, 9, 1, (Placeholder(item_of(0), 2),)), Sample(1, 9, 1)]
    for plan in PLANS.values():
        step = plan_step(plan, samples, is_training=False)
        kinds = {action.kind for lane in step.program.lanes for action in lane}
        assert {Kind.F} <= kinds <= {Kind.F, Kind.SEND_F, Kind.RECV_F}
        trained = {action.kind for lane in plan_step(plan, samples).program.lanes for action in lane}
        assert trained > kinds and Kind.REDUCE_GRAD in trained


def test_items_of_a_homogeneous_encoder_stay_with_the_stage_that_they_feed() -> None:
    plan = plan_of(
        "first_rank = 0, layout.dp = 4",
        "first_rank = 0, layout = { dp = 2, pp = 2 }",
        world_size=4,
        schedule='encoder = "stage0"',
    )
    samples = [Sample(i, 9, 1, (Placeholder(item_of(i), 2),)) for i in range(8)]
    step = plan_step(plan, samples)
    for m in range(plan.microbatches):
        assert [bool(share.members) for share in shares_of(step, "vision", m)][2:] == [False, False]
    check_complete(plan, samples, step)


def test_topology_names_the_lanes_that_run_each_stage() -> None:
    topology, lanes = make_topology(PLANS["overlapping"])
    assert lanes == ((0, 1), (2,), (3,))
    assert topology.module("vision").stages == (((0,), (1,)),)
    assert topology.module("llm").stages == (((1,),), ((2,),))
    frozen, _ = make_topology(PLANS["frozen encoder"])
    assert not frozen.module("vision").has_backward and frozen.module("llm").has_backward


ITEM = Item("vision", 7, num_inputs=4, num_rows=2)
GOOD = Sample(3, 9, 1, (Placeholder(ITEM, 1), Placeholder(ITEM, 5)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, placeholders=(Placeholder(ITEM, 8),)), "its 2 rows at 8 overlap another .* sample's 9 tokens"),
        (replace(GOOD, placeholders=(Placeholder(ITEM, -1),)), "its 2 rows at -1 overlap another"),
        (replace(GOOD, placeholders=(Placeholder(ITEM, 1), Placeholder(ITEM, 2))), "its 2 rows at 2 overlap another"),
        (replace(GOOD, placeholders=(Placeholder(ITEM, 5), Placeholder(ITEM, 1))), "its 2 rows at 1 overlap another"),
        (replace(GOOD, placeholders=(Placeholder(replace(ITEM, num_rows=0), 1),)), "4 inputs and 0 rows; both must"),
        (replace(GOOD, placeholders=(Placeholder(replace(ITEM, num_inputs=0), 1),)), "0 inputs and 2 rows; both must"),
        (
            replace(GOOD, placeholders=(Placeholder(replace(ITEM, module="audio"), 1),)),
            r"item 7 of module audio: the plan has no boundary from that module; use one of \['vision'\]",
        ),
        (
            replace(GOOD, placeholders=(Placeholder(replace(ITEM, num_rows=3), 1),)),
            "item 7 of module vision has 4 inputs and 3 rows, but was described otherwise by another sample",
        ),
    ],
)
def test_a_sample_that_does_not_fit_is_a_data_error_that_names_it(bad: Sample, message: str) -> None:
    other = replace(GOOD, index=2)
    plan_step(PLANS["colocated"], [other, GOOD])
    with pytest.raises(DataError, match=f"^sample 3: .*{message}"):
        plan_step(PLANS["colocated"], [other, bad])


def test_a_batch_without_a_target_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no sample of the batch has a target"):
        plan_step(PLANS["colocated"], [replace(GOOD, weight=0)])
