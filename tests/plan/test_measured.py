"""Costs taken from a timeline predict it, and leave out what was waiting."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable
from hetsched.sim.costs import Costs, Link
from hetsched.sim.measured import measured_costs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Stream, Timeline, make_timeline
from tests.plan.literal import literal, pipeline, replicated
from tests.plan.random_programs import costs, programs

FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def one_lane(*, f: int = 10, waited_ns: int = 0) -> Timeline:
    timeline = simulate(literal([pipeline([0])], 2, "0F0 0B0 0F1 0B1"), Costs.constant(F=f, B=20))
    spans = [s._replace(waited_ns=waited_ns) if str(s.action) == "llm:0F1" else s for s in timeline.spans]
    return make_timeline(timeline.program, spans)


def cost(found: Costs, pattern: str) -> int:
    return {str(p): ns for p, ns in found.durations_ns.values.items()}[pattern]


@FEW
@given(program=programs(), cost=costs())
def test_by_microbatch_they_give_the_same_timeline_again(program: Program, cost: Costs) -> None:
    """But for messages, whose sizes are not seen, and windows, whose parts are not."""
    free = Costs(cost.durations_ns)
    timeline = simulate(program, free)
    if any(len(s.action.microbatches) > 1 for s in timeline.spans):
        return
    assert simulate(program, measured_costs([timeline], by_microbatch=True)).spans == timeline.spans


def test_waiting_is_no_cost() -> None:
    found = measured_costs([one_lane(waited_ns=4)], by_microbatch=True)
    assert (cost(found, "llm:0F0@0"), cost(found, "llm:0F1@0")) == (10, 6)


def test_by_stage_they_are_means_over_microbatches_and_steps() -> None:
    found = measured_costs([one_lane(f=10), one_lane(f=10, waited_ns=4), one_lane(f=40)])
    assert cost(found, "llm:0F@0") == (10 + 10 + 10 + 6 + 40 + 40) // 6
    assert cost(found, "llm:0B@0") == 20


def test_lanes_are_told_apart_and_others_get_the_mean() -> None:
    program = literal([replicated(0, 1), pipeline([1])], 1, "vision:0F0", "vision:0F0 0F0", edges=[])
    table = ActionTable.parse({"vision:0F@0": 10, "vision:0F@1": 30, "llm:F": 5})
    found = measured_costs([simulate(program, Costs(table))])
    assert [cost(found, f"vision:0F{lane}") for lane in ("@0", "@1", "")] == [10, 30, 20]


def test_a_windows_work_is_that_of_its_microbatches() -> None:
    program = literal([replicated(0), pipeline([0])], 4, "vision:0F0-3 0F0 0F1 0F2 0F3", edges=[])
    found = measured_costs([simulate(program, Costs.constant(F=7))])
    assert cost(found, "vision:0F") == 7


def test_a_message_costs_the_shortest_time_that_any_took() -> None:
    """Many may wait for what is before them; what has no rows says nothing."""
    program = literal(
        [pipeline([0], [1])], 3, "0F0 0SEND_F0 0F1 0SEND_F1 0F2 0SEND_F2", "1RECV_F0 1F0 1RECV_F1 1F1 1RECV_F2 1F2"
    )
    timeline = simulate(program, Costs(ActionTable.parse({"F": 100}), links={"llm": Link(8)}))
    ends = {100: 108 + 50, 200: 208, 300: 300}
    changed = [s if s.stream is Stream.COMPUTE else s._replace(end_ns=ends[s.start_ns]) for s in timeline.spans]
    assert measured_costs([make_timeline(program, changed)]).links["llm"] == Link(8)


def test_a_fused_pair_has_a_cost_of_its_own() -> None:
    program = literal([pipeline([0])], 2, "0F0 (llm:0F1;llm:0B0)OVERLAP_F_B 0B1")
    timeline = simulate(program, Costs.constant(F=10, B=20, OVERLAP_F_B=25))
    found = measured_costs([timeline])
    assert cost(found, "llm:0OVERLAP_F_B") == 25
    assert simulate(program, found).makespan_ns == pytest.approx(timeline.makespan_ns)
