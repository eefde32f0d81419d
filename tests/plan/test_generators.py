"""Makespans and live activations of the schedules against the formulas of their papers."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hetsched.check.validate import check, slot_table, validate
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Action
from hetsched.schedule.program import Program
from hetsched.sim.costs import Costs, duration_array, message_times
from hetsched.sim.live import peak_live_microbatches
from tests.plan.pipelines import GENERATORS, lowered, unlowered

SIZES = range(2, 17)
MAX_MICROBATCHES = 64


@dataclass(frozen=True)
class Outcome:
    """Makespan, work of each lane, and most live activations of each lane."""

    makespan: int
    work: list[int]
    live: tuple[int, ...]


def outcome(schedule: str, num_lanes: int, num_microbatches: int, **costs: int) -> Outcome:
    program = unlowered(schedule, num_lanes, num_microbatches)
    flat = check(lowered(program))
    durations = duration_array(flat, Costs.constant(**costs))
    times = message_times(flat.program, Costs.constant())
    run = flat.compiled.run(durations, times, slot_table(flat, None), False)
    begin = flat.lane_begin
    work = [int(durations[begin[lane] : begin[lane + 1]].sum()) for lane in range(num_lanes)]
    return Outcome(run.makespan, work, peak_live_microbatches(program))


def check_bubble(found: Outcome, bubble: int) -> None:
    """The same on every lane."""
    assert [found.makespan - work for work in found.work] == [bubble] * len(found.work)


@pytest.mark.parametrize("p", SIZES)
def test_gpipe(p: int) -> None:
    for m in range(p, MAX_MICROBATCHES + 1):
        found = outcome("gpipe", p, m, F=3, B=5)
        check_bubble(found, (p - 1) * (3 + 5))
        assert found.live == (m,) * p


@pytest.mark.parametrize("p", SIZES)
def test_1f1b(p: int) -> None:
    for m in range(p, MAX_MICROBATCHES + 1):
        found = outcome("1f1b", p, m, F=3, B=5)
        check_bubble(found, (p - 1) * (3 + 5))
        assert found.live == tuple(min(p - s, m) for s in range(p))


@pytest.mark.parametrize("p", SIZES)
def test_interleaved_where_p_divides_m(p: int) -> None:
    for m in range(p, MAX_MICROBATCHES + 1, p):
        found = outcome("interleaved", p, m, F=3, B=5)
        check_bubble(found, (p - 1) * (3 + 5))
        assert found.live == tuple(min(2 * (p - s - 1) + p + 1, 2 * m) for s in range(p))


@pytest.mark.parametrize("p", SIZES)
@pytest.mark.parametrize("costs", [(4, 5, 3), (2, 2, 2)], ids=str)
def test_zb_h1_where_w_is_the_smallest(p: int, costs: tuple[int, int, int]) -> None:
    f, i, w = costs
    for m in range(p, MAX_MICROBATCHES + 1, 1 if f == 4 else 5):
        found = outcome("zb-h1", p, m, F=f, I=i, W=w)
        check_bubble(found, (p - 1) * (f + i - w))
        assert found.live == (p,) * p


@pytest.mark.parametrize("p", SIZES)
def test_zb_v_where_all_costs_are_equal(p: int) -> None:
    for m in range(2 * p - 1, MAX_MICROBATCHES + 1):
        found = outcome("zb-v", p, m, F=2, I=2, W=2)
        check_bubble(found, (p - 1) * 2)
        assert found.live == (2 * p,) * p


@pytest.mark.parametrize("p", SIZES)
def test_dualpipev_where_all_costs_are_equal(p: int) -> None:
    for m in range(2 * p, MAX_MICROBATCHES + 1):
        found = outcome("dualpipev", p, m, F=2, I=2, W=2)
        check_bubble(found, (p - 1) * (6 + 4 - 3 * 2))
        assert found.live == (2 * p + 1,) * p


@pytest.mark.parametrize("pair", [4, 5, 7])
def test_dualpipev_has_its_bubble_on_the_last_lane_whatever_a_pair_costs(pair: int) -> None:
    for p in (2, 3, 8):
        found = outcome("dualpipev", p, 2 * p + 3, F=2, I=2, W=2, OVERLAP_F_B=pair)
        assert found.makespan - found.work[-1] == (p - 1) * (pair + 4 - 3 * 2)


@pytest.mark.parametrize("p", [2, 3, 7])
@pytest.mark.parametrize("num_virtual", [1, 3, 4])
def test_interleaving_divides_the_bubble_by_the_stages_of_a_lane(p: int, num_virtual: int) -> None:
    program = lowered(unlowered("interleaved", p, 3 * p, num_virtual=num_virtual))
    flat = check(program)
    durations = duration_array(flat, Costs.constant(F=3, B=5))
    run = flat.compiled.run(durations, message_times(program, Costs.constant()), slot_table(flat, None), False)
    assert run.makespan == 3 * p * num_virtual * 8 + (p - 1) * 8


@pytest.mark.parametrize("schedule", GENERATORS)
@pytest.mark.parametrize("p", [1, 2, 3, 5, 8])
def test_every_schedule_is_sound_for_any_number_of_microbatches(schedule: str, p: int) -> None:
    for m in range(1, 24):
        validate(lowered(unlowered(schedule, p, m)))


@pytest.mark.parametrize("schedule", GENERATORS)
def test_the_sweeps_lower_as_hetsched_does(schedule: str) -> None:
    for p, m in [(1, 3), (2, 4), (3, 7)]:
        program = unlowered(schedule, p, m)
        assert lowered(program) == lower_transfers(program)


def text(program: Program) -> list[str]:
    """Lanes as in the papers' figures: a dash for the second stage of a lane, fused pairs as one word."""

    def cell(action: Action) -> str:
        return f"{action.kind}{action.first}" + ("'" if action.stage >= len(program.lanes) else "")

    return [" ".join("".join(map(cell, action.flat())) for action in actions) for actions in program.lanes]


FIGURES = {
    ("gpipe", 2, 3): ["F0 F1 F2 B0 B1 B2", "F0 F1 F2 B0 B1 B2"],
    ("1f1b", 3, 4): ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"],
    ("interleaved", 2, 4): [
        "F0 F1 F0' F1' F2 B0' F3 B1' F2' B0 F3' B1 B2' B3' B2 B3",
        "F0 F1 F0' B0' F1' B1' F2 B0 F3 B1 F2' B2' F3' B3' B2 B3",
    ],
    ("zb-h1", 3, 5): [
        "F0 F1 F2 I0 W0 F3 I1 W1 F4 I2 W2 I3 W3 I4 W4",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 F4 I3 W2 I4 W3 W4",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 F4 I4 W2 W3 W4",
    ],
    ("zb-v", 2, 3): [
        "F0 F1 F2 F0' I0' W0' F1' I1' W1' I0 W0 F2' I2' W2' I1 W1 I2 W2",
        "F0 F0' F1 F1' I0' W0' F2 I0 W0 F2' I1' W1' I1 I2' I2 W1 W2' W2",
    ],
    ("dualpipev", 2, 4): [
        "F0 F1 F2 F0' I0' W0' F1' F3B1' F2'B0 B2' F3'B1 B3' I2 W2 I3 W3",
        "F0 F0' F1 F1' F2 B0' F2'B0 F3B1' F3'B1 B2' B2 I3' I3 W3' W3",
    ],
}


@pytest.mark.parametrize("case", FIGURES, ids=str)
def test_the_lists_are_those_of_the_figures(case: tuple[str, int, int]) -> None:
    assert text(unlowered(*case)) == FIGURES[case]
