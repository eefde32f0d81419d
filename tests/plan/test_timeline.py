"""What a timeline says of itself: bubble by cause, critical path, memory, JSON."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetsched.check.validate import Slots, validate
from hetsched.errors import ScheduleError
from hetsched.schedule.action import Kind, act
from hetsched.schedule.program import Program
from hetsched.schedule.serialize import program_from_json, program_to_json
from hetsched.schedule.table import ActionTable
from hetsched.sim.bubble import Bubble, bubble_fraction, bubbles, total_bubble
from hetsched.sim.costs import Costs, Link
from hetsched.sim.critical import critical_path
from hetsched.sim.live import peak_live_microbatches
from hetsched.sim.messages import message_pairs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline
from tests.plan.literal import literal, pipeline, replicated
from tests.plan.pipelines import lowered, unlowered
from tests.plan.random_programs import costs, programs

FEW = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def one_f_one_b(p: int, m: int, *, latency_ns: int = 0, **durations: int) -> Timeline:
    table = ActionTable.parse(durations or {"F": 10, "B": 20})
    return simulate(lowered(unlowered("1f1b", p, m)), Costs(table, links={"default": Link(latency_ns)}))


def test_the_bubble_of_1f1b_is_warmup_cooldown_and_dependency() -> None:
    assert bubbles(one_f_one_b(3, 5)) == (
        Bubble(warmup=0, cooldown=0, dependency=60),
        Bubble(warmup=10, cooldown=20, dependency=30),
        Bubble(warmup=20, cooldown=40, dependency=0),
    )
    assert bubble_fraction(one_f_one_b(3, 5)) == 60 / (5 * 30 + 60)


def test_messages_on_their_way_are_transfer_time() -> None:
    """Lane 1 works from 15 to 18 and from 26 to 29; the message that it waits for leaves at 22."""
    program = literal([pipeline([0], [1])], 2, "0F0 0SEND_F0 0F1 0SEND_F1", "1RECV_F0 1F0 1RECV_F1 1F1")
    timeline = simulate(program, Costs(ActionTable.parse({"llm:0F": 11, "llm:1F": 3}), links={"llm": Link(4)}))
    # Of the 23 idle nanoseconds 16 are lane 0's greater work: all 4 of dependency, and 12 of the warmup.
    assert bubbles(timeline)[1] == Bubble(warmup=15 - 12, transfer=4, imbalance=16)


def test_work_that_the_busiest_lane_has_more_is_imbalance() -> None:
    timeline = one_f_one_b(2, 4, **{"llm:0F": 10, "llm:0B": 20, "llm:1F": 20, "llm:1B": 40})
    first, second = bubbles(timeline)
    assert first.imbalance == 4 * 30
    assert second.imbalance == 0
    assert first.total - first.imbalance == second.total


def test_a_lane_without_work_is_idle_for_the_imbalance_first() -> None:
    timeline = simulate(literal([pipeline([0])], 1, "0F0 0B0", ""), Costs.constant(F=1, B=2))
    assert bubbles(timeline)[1] == Bubble(imbalance=3)


@FEW
@given(program=programs(), cost=costs())
def test_causes_add_up_to_the_idle_time(program: Program, cost: Costs) -> None:
    timeline = simulate(program, cost)
    for lane, bubble in enumerate(bubbles(timeline)):
        work = sum(span.duration_ns for span in timeline.stream(lane, Stream.COMPUTE))
        assert bubble.total == timeline.makespan_ns - work
        assert min(bubble.by_cause().values()) >= 0
    total = sum(bubble.total for bubble in bubbles(timeline))
    assert total_bubble(timeline).total == total


@FEW
@given(program=programs(), cost=costs(), slots=st.sampled_from([None, 1]), rendezvous=st.booleans())
def test_the_critical_path_has_no_gap_and_ends_last(
    program: Program, cost: Costs, slots: Slots, rendezvous: bool
) -> None:
    try:
        validate(program, slots=slots, rendezvous=rendezvous)
    except ScheduleError:
        return
    timeline = simulate(program, cost, slots=slots, rendezvous=rendezvous)
    path = critical_path(timeline)
    assert path[-1].end_ns == timeline.makespan_ns
    assert path[0].start_ns == 0
    if slots is None and not rendezvous:
        assert all(before.end_ns == after.start_ns for before, after in pairwise(path))


def test_the_critical_path_of_1f1b_goes_down_along_and_up() -> None:
    path = [str(span.action) for span in critical_path(one_f_one_b(3, 2)) if span.duration_ns]
    assert path == [f"llm:{a}" for a in ("0F0", "1F0", "2F0", "2B0", "2F1", "2B1", "1B1", "0B1")]


def test_the_critical_path_runs_through_messages() -> None:
    path = [str(span.action) for span in critical_path(one_f_one_b(2, 1, latency_ns=5))]
    assert path == [f"llm:{a}" for a in ("0F0", "1RECV_F0", "1F0", "1B0", "0RECV_B0", "0B0")]


def test_memory_rises_with_forwards_and_falls_after_backwards() -> None:
    program = literal([pipeline([0])], 2, "0F0 0F1 0I0 0W0 0B1")
    held = ActionTable.parse({"F": 100, "llm:0F1": 30})
    timeline = simulate(program, Costs(ActionTable.parse({"F": 1, "I": 2, "W": 3, "B": 5}), held_bytes=held))
    assert timeline.memory == (((0, 100), (1, 130), (7, 30), (12, 0)),)


def test_frozen_modules_hold_nothing_after_their_forward() -> None:
    program = literal([replicated(0, has_backward=False)], 2, "vision:0F0-1")
    timeline = simulate(program, Costs(ActionTable.parse({"F": 1}), held_bytes=ActionTable.parse({"F": 5})))
    assert timeline.memory == (((0, 10), (2, 0)),)


def test_live_microbatches_count_stages_and_the_modules_asked_for() -> None:
    program = literal(
        [pipeline([0], [0]), replicated(0)], 2, "vision:0F0-1 0F0 1F0 0F1 1F1 1B0 0B0 1B1 0B1 vision:0B0-1"
    )
    assert peak_live_microbatches(program) == (4,)
    assert peak_live_microbatches(program, modules=["vision"]) == (2,)


def test_messages_are_paired() -> None:
    pairs = list(message_pairs(one_f_one_b(3, 2)))
    assert len(pairs) == 8
    for sent, received in pairs:
        assert (sent.lane, sent.peer) == (received.peer, received.lane)
        assert sent.action.first == received.action.first
        assert abs(sent.action.stage - received.action.stage) == 1


@FEW
@given(program=programs(), cost=costs())
def test_timelines_and_programs_survive_json(program: Program, cost: Costs) -> None:
    assert program_from_json(json.loads(json.dumps(program_to_json(program)))) == program
    timeline = simulate(program, cost)
    assert Timeline.from_json(json.loads(json.dumps(timeline.to_json()))) == timeline
    assert Costs.from_json(json.loads(json.dumps(cost.to_json()))) == cost


def broken(key: str, value: Any) -> dict[str, Any]:
    data = one_f_one_b(2, 1).to_json()
    *path, last = key.split(".")
    at: Any = data
    for step in path:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("format", "other", "not a file of format hetsched-timeline-2"),
        ("extra", 1, "expected an object with keys"),
        ("lower_bound_ns", 1.5, "lower_bound_ns is 1.5, expected int"),
        ("spans.0", [0, "compute", 0], "a span is"),
        ("spans.0.1", "copy", "the stream is one of"),
        ("spans.0.3", -1, "span llm:0F0 on lane 0: 0 to -1 ns"),
        ("spans.0.0", 7, "on lane 7"),
        ("spans.0.6", 11, "11 of 10 ns waited"),
        ("spans.0.4", "0BOGUS", "is not an action"),
        ("program.format", 1, "not a file of format hetsched-program-1"),
        ("program.num_microbatches", True, "num_microbatches is True, expected int"),
        ("program.lanes.0", "0F0", "lane 0: expected a list of str"),
        ("program.lanes.0.0", "llm:0F-1", "is not an action"),
        ("program.modules.0.name", 3, "name is 3, expected str"),
        ("program.modules.0.stages", [[["0"]]], "a gang: expected a list of int"),
        ("program.edges", [{"producer": "a"}], "edge: expected an object with keys"),
    ],
)
def test_json_that_is_not_ours_is_refused(key: str, value: object, fault: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        Timeline.from_json(broken(key, value))
    assert fault in str(caught.value)


def test_a_measured_timeline_with_gaps_and_skewed_clocks_has_a_path_and_a_bubble() -> None:
    program = literal([pipeline([0], [1])], 1, "0F0 0SEND_F0 0RECV_B0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0")
    at_0 = {kind: act("llm", 0, kind, 0) for kind in Kind}
    spans = [
        Span(0, Stream.COMPUTE, 3, 10, at_0[Kind.F]),
        Span(0, Stream.SEND, 11, 14, at_0[Kind.SEND_F], 1),
        Span(1, Stream.RECEIVE, 12, 15, act("llm", 1, Kind.RECV_F, 0), 0),
        Span(1, Stream.COMPUTE, 16, 20, act("llm", 1, Kind.F, 0)),
        Span(1, Stream.COMPUTE, 21, 30, act("llm", 1, Kind.B, 0)),
        Span(1, Stream.SEND, 30, 33, act("llm", 1, Kind.SEND_B, 0), 0),
        Span(0, Stream.RECEIVE, 29, 33, at_0[Kind.RECV_B], 1),
        Span(0, Stream.COMPUTE, 34, 40, at_0[Kind.B]),
    ]
    timeline = make_timeline(program, spans)
    assert [str(span.action) for span in critical_path(timeline)][-3:] == ["llm:1B0", "llm:0RECV_B0", "llm:0B0"]
    assert bubbles(timeline)[0] == Bubble(warmup=3, dependency=20, transfer=4)
    assert timeline.gap is None
