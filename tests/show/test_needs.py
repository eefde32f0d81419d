"""What the hover shows: the makers of what an action needs, and the messages that bring it."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.show.needs import compute_spans, needs
from hetsched.sim.costs import Costs
from hetsched.sim.messages import message_pairs
from hetsched.sim.simulate import simulate
from tests.plan.pipelines import lowered, unlowered
from tests.plan.random_programs import costs, programs
from tests.show.steps import colocated_step

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_forward_needs_the_stage_before_and_the_encoder_on_every_lane() -> None:
    timeline = colocated_step(2, 2)
    spans, pairs = compute_spans(timeline), list(message_pairs(timeline))
    found: dict[str, set[str]] = {}
    for need in needs(timeline, spans, pairs):
        user, maker = spans[need.user], spans[need.maker]
        found.setdefault(str(user.action), set()).add(f"{maker.action} of {maker.lane}")
    assert found["llm:0F1"] == {"vision:0F1 of 0", "vision:0F1 of 1"}
    assert found["llm:1F1"] == {"llm:0F1 of 0"}
    assert found["llm:0B1"] == {"llm:1B1 of 1"}
    assert found["vision:0B1"] == {"llm:0B1 of 0"}
    assert "llm:1B1" not in found


def test_what_is_handed_over_on_a_lane_has_no_message() -> None:
    timeline = simulate(lowered(unlowered("zb-v", 2, 4)), Costs.constant(F=1, I=1, W=1))
    spans = compute_spans(timeline)
    handed = [n for n in needs(timeline, spans, list(message_pairs(timeline))) if n.message is None]
    # Stages 1 and 2 lie on lane 1: a forward and an input gradient for each of 4 microbatches.
    assert len(handed) == 8
    assert {spans[n.user].lane for n in handed} == {1}
    assert {spans[n.user].action.kind for n in handed} == {Kind.F, Kind.I}


@FEW
@given(program=programs(), cost=costs())
def test_makers_end_before_their_message_and_messages_before_their_user(program: Program, cost: Costs) -> None:
    timeline = simulate(program, cost)
    spans, pairs = compute_spans(timeline), list(message_pairs(timeline))
    found = list(needs(timeline, spans, pairs))
    for need in found:
        before, after = spans[need.maker].end_ns, spans[need.user].start_ns
        if need.message is not None:
            assert before <= need.message.start_ns
            before = need.message.end_ns
        assert before <= after
    brought = [id(need.message) for need in found if need.message is not None]
    assert sorted(brought) == sorted(id(received) for _, received in pairs)
