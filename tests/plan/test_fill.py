"""Encoders in bubbles: the table of makespans, the state that is held, and that every program runs to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.check.validate import validate
from hetsched.errors import HetschedError, ScheduleError
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder import ItemCost
from hetsched.schedule.program import Program
from hetsched.schedule.registry import PIPELINES
from tests.plan.fillable import Step, even, step
from tests.plan.literal import replicated

UNIT = 32
"""A unit of the table's costs: what is halved five times is still whole."""
TABLE = [
    # P, M, e_f, three_phase, stage0, fill, fill split: at most
    (4, 8, 0.5, 36.0, 40.5, 34.5, 33.375 * 1.02),
    (4, 8, 1.0, 39.0, 51.0, 36.0, 33.75 * 1.02),
    (4, 16, 0.5, 63.0, 76.5, 58.5, 57.375 * 1.02),
    (4, 16, 1.0, 69.0, 99.0, 63.0, 60.0 * 1.03),
    (2, 8, 0.5, 33.0, 37.5, 30.5, 30.0 * 1.03),
]


def of_table(num_lanes: int, num_microbatches: int, forward: float, num_items: int) -> Step:
    cost = int(forward * UNIT / num_items)
    durations = {Kind.F: UNIT, Kind.B: 2 * UNIT}
    return step("1f1b", num_lanes, even(num_microbatches, cost, 2 * cost, num_items=num_items), durations=durations)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_makespans_of_the_table(row: tuple[int, int, float, float, float, float, float]) -> None:
    num_lanes, num_microbatches, forward, three_phase, stage0, fill, split = row
    whole = of_table(num_lanes, num_microbatches, forward, 1)
    assert whole.run("three_phase").timeline.makespan_ns == three_phase * UNIT
    assert whole.run("stage0").timeline.makespan_ns == stage0 * UNIT
    assert whole.run().timeline.makespan_ns <= fill * UNIT
    cut = of_table(num_lanes, num_microbatches, forward, 16)
    makespan = cut.run(split_items=True).timeline.makespan_ns
    work = num_microbatches * (3 + 3 * forward / num_lanes)
    chain = (num_microbatches + num_lanes - 1) * 3 + 3 * forward / num_lanes
    assert max(work, chain) * UNIT <= makespan <= split * UNIT


@pytest.mark.parametrize("schedule", PIPELINES)
@pytest.mark.parametrize("num_lanes", [2, 4])
@pytest.mark.parametrize("num_items", [1, 4])
def test_no_more_state_is_held_than_may_be(schedule: str, num_lanes: int, num_items: int) -> None:
    num_microbatches = 2 * num_lanes + 2
    small = step(schedule, num_lanes, even(num_microbatches, 1, 2, num_items=num_items))
    for limit in range(1, 2 * num_lanes + 1):
        placed = small.run(in_flight=limit, budget=60, split_items=num_items > 1)
        assert placed.in_flight["vision"] <= limit
        if limit < num_lanes and schedule in ("1f1b", "gpipe"):
            least = num_microbatches * (6 * num_lanes + 3 / num_lanes) / limit
            assert placed.timeline.makespan_ns >= least


def test_a_smaller_limit_costs_time_and_a_large_one_none() -> None:
    small = of_table(4, 8, 0.5, 1)
    makespans = [small.run(in_flight=limit).timeline.makespan_ns for limit in (1, 2, 4, 8)]
    assert makespans[-1] == small.run().timeline.makespan_ns
    assert makespans[0] > makespans[1] > makespans[2] >= makespans[3]


def test_recompute_holds_no_state_and_pays_the_forward_again() -> None:
    small = step("1f1b", 4, even(8, 1, 2))
    placed = small.run(in_flight=1, recompute=True)
    again = placed.placement.recomputed["vision"]
    assert again and placed.in_flight["vision"] <= 1
    for pattern, duration in placed.placement.durations_ns.items():
        if pattern.kind is Kind.B:
            assert duration == 2 + (pattern.microbatch in again)
    assert placed.timeline.makespan_ns < small.run(in_flight=1).timeline.makespan_ns


def test_text_only_microbatches_get_no_encoder_action() -> None:
    items = [[], [ItemCost(1, 2)], [], [ItemCost(2, 4)] * 2, [], [ItemCost(1, 1)]]
    program = step("1f1b", 2, items).run().placement.program
    encoded = [a for lane in program.lanes for a in lane if a.module == "vision"]
    assert sorted((a.first, a.kind) for a in encoded) == [(m, k) for m in (1, 3, 5) for k in (Kind.B, Kind.F)]


def test_items_of_a_microbatch_go_to_lanes_without_gap_or_overlap() -> None:
    items = [[ItemCost(1 + i % 3, 2 + i % 2) for i in range(m + 1)] for m in range(8)]
    placement = step("1f1b", 4, items).run(split_items=True).placement
    for m, of_microbatch in enumerate(items):
        shares = placement.shares["vision", m]
        taken = sorted(i for s in shares for i in range(s.first_item, s.first_item + s.num_items))
        assert taken == list(range(len(of_microbatch)))
        assert len({share.lane for share in shares}) == len(shares)


@pytest.mark.parametrize("policy", ["fill", "window", "three_phase", "stage0"])
def test_two_encoders_of_which_one_is_frozen(policy: str) -> None:
    encoders = (replicated(0, 1, 2), replicated(0, 2, name="audio", has_backward=False))
    both = step("1f1b", 3, {"vision": even(6, 1, 2), "audio": even(6, 2, 0)}, encoders=encoders)
    program = both.run(policy).placement.program
    kinds = {(a.module, a.kind) for lane in program.lanes for a in lane if a.module != "llm"}
    assert kinds == {("vision", Kind.F), ("vision", Kind.B), ("audio", Kind.F)}


@pytest.mark.parametrize("limit", [None, 2, 5])
def test_an_encoder_on_lanes_of_its_own_runs_ahead_as_far_as_its_state_allows(limit: int | None) -> None:
    apart = step("1f1b", 2, even(8, 1, 1), encoders=(replicated(2),))
    placed = apart.run(in_flight=limit)
    own = placed.placement.program.lanes[2]
    ahead = next(i for i, action in enumerate(own) if action.kind is Kind.B)
    assert ahead <= (limit or 8)
    if limit is None:
        alone = step("1f1b", 2, [[] for _ in range(8)]).run().timeline.makespan_ns
        assert placed.timeline.makespan_ns == alone + 2, "only the first forward and the last backward are seen"
        assert ahead > 2, "further ahead than the pipeline is deep"


@pytest.mark.parametrize("window", range(1, 9))
def test_windows_of_every_size_hold_the_state_of_a_few(window: int) -> None:
    placed = step("1f1b", 2, even(8, 1, 2)).run("window", window=window)
    lengths = {len(a.microbatches) for lane in placed.placement.program.lanes for a in lane if a.module == "vision"}
    assert max(lengths) <= window
    assert window <= placed.in_flight["vision"] <= min(8, 2 + 2 * window)


SCRIPT = """
from tests.plan.fillable import even, step
for limit in (None, 2):
    placed = step("1f1b", 4, even(8, 3, 5, num_items=4)).place(split_items=True, in_flight=limit, budget=500)
    print([list(map(str, lane)) for lane in placed.program.lanes], placed.shares)
"""


def test_equal_arguments_give_equal_programs_in_every_process() -> None:
    outputs = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        outputs.add(subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, check=True).stdout)
    assert len(outputs) == 1


costs = st.builds(ItemCost, st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.lists(costs, max_size=4), min_size=1, max_size=9),
    num_lanes=st.integers(1, 4),
    schedule=st.sampled_from(["1f1b", "gpipe", "zb-h1"]),
    durations=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    options=st.fixed_dictionaries(
        {"in_flight": st.none() | st.integers(1, 8), "recompute": st.booleans(), "split_items": st.booleans()}
    ),
)
def test_every_placed_program_is_sound_and_ends(
    items: Sequence[Sequence[ItemCost]],
    num_lanes: int,
    schedule: str,
    durations: tuple[int, int],
    options: dict[str, int | bool | None],
) -> None:
    forward, half = durations
    of_kinds = {Kind.F: forward, Kind.B: 2 * half, Kind.I: half, Kind.W: half}
    placed = step(schedule, num_lanes, items, durations=of_kinds).run(**options, budget=120)
    validate(lower_transfers(placed.placement.program))
    limit = options["in_flight"]
    assert limit is None or placed.in_flight["vision"] <= limit


def changed(program: Program, change: str) -> Program:
    """The program with a fault on the first lane that has an action of the encoder to be wronged."""
    for number, actions in enumerate(program.lanes):
        lane: list[Action] = list(actions)
        kind = Kind.B if change == "dropped backward" else Kind.F
        places = [i for i, a in enumerate(lane) if a.module == "vision" and a.kind is kind]
        if not places:
            continue
        wronged = lane.pop(places[0])
        if change == "late forward":
            lane.append(wronged)
        elif change == "twice":
            lane[:0] = [wronged, wronged]
        return replace(program, lanes=(*program.lanes[:number], tuple(lane), *program.lanes[number + 1 :]))
    raise AssertionError("no action to change")


@pytest.mark.parametrize("change", ["dropped backward", "dropped forward", "late forward", "twice"])
def test_wronged_programs_are_refused(change: str) -> None:
    program = step("1f1b", 4, even(8, 1, 2)).run().placement.program
    with pytest.raises(HetschedError):
        validate(lower_transfers(changed(program, change)))


def test_what_cannot_be_placed_is_refused_in_words() -> None:
    small = step("1f1b", 2, even(4, 1, 2))
    with pytest.raises(ScheduleError, match="in_flight=0"):
        small.place(in_flight=0)
    with pytest.raises(ScheduleError, match="window=0"):
        small.place("window", window=0)
