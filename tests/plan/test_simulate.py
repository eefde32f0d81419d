"""The simulator against a twin that follows its description one event after the other."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from hetsched.check.validate import Slots
from hetsched.errors import ScheduleError
from hetsched.schedule.program import Program
from hetsched.sim.costs import Costs
from hetsched.sim.simulate import simulate, simulated_makespan_ns
from hetsched.sim.timeline import Stream, Timeline
from tests.plan.random_programs import costs, program_pairs, programs
from tests.plan.twin import Message, Twin

SLOTS = st.one_of(st.none(), st.integers(1, 2), st.just({("llm", "F"): 1}))
CASES = st.tuples(programs(), costs(), SLOTS, st.booleans())
FEW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
# The first example will do; a smaller one is not looked for.
SEARCH = settings(FEW, max_examples=5000, phases=[Phase.generate], derandomize=True)


def times(timeline: Timeline) -> dict[object, tuple[int, int]]:
    """Start and end of compute spans by lane and action, and of messages by both ends and the SEND."""
    found: dict[object, tuple[int, int]] = {}
    for span in timeline.spans:
        if span.stream is Stream.COMPUTE:
            found[span.lane, span.action] = span.start_ns, span.end_ns
        elif span.stream is Stream.SEND:
            found[span.lane, span.peer, span.action] = span.start_ns, span.end_ns
    return found


def agrees(twin: Twin) -> bool:
    """Whether the engine stops where the twin stops, and otherwise does everything at the same time."""
    ends = twin.run()
    try:
        timeline = simulate(twin.program, twin.costs, slots=twin.slots, rendezvous=twin.rendezvous)
    except ScheduleError as error:
        return "deadlock" in str(error) and not ends
    expected = {key: (m.start, m.end) for key, m in twin.messages.items()} | twin.spans
    return ends and times(timeline) == expected


@FEW
@given(case=CASES)
def test_the_engine_agrees_with_its_twin(case: tuple[Program, Costs, Slots, bool]) -> None:
    assert agrees(Twin(*case))


@FEW
@given(program=programs(), cost=costs())
def test_the_makespan_alone_is_that_of_the_timeline(program: Program, cost: Costs) -> None:
    try:
        expected = simulate(program, cost).makespan_ns
    except ScheduleError:
        with pytest.raises(ScheduleError):
            simulated_makespan_ns(program, cost)
    else:
        assert simulated_makespan_ns(program, cost) == expected


class OtherWayAtTies(Twin):
    def precedence(self, message: Message) -> tuple[int, int]:
        return super().precedence(message)[0], -message.source


class SlotsAreFreedOnArrival(Twin):
    def is_in_slot(self, message: Message) -> bool:
        return message.posted is not None and (message.end is None or message.end > self.now)


class RendezvousWithOneself(Twin):
    def is_exempt(self, message: Message) -> bool:
        return False


class GangsDoNotWait(Twin):
    def gang(self, lane: int, action: object) -> tuple[int, ...]:
        return (lane,)


@pytest.mark.parametrize("mutant", [OtherWayAtTies, SlotsAreFreedOnArrival, RendezvousWithOneself, GangsDoNotWait])
def test_a_twin_with_one_wrong_rule_disagrees(mutant: type[Twin]) -> None:
    try:
        find(CASES, lambda case: not agrees(mutant(*case)), settings=SEARCH)
    except NoSuchExample:
        pytest.fail(f"{mutant.__name__} gives the same times")


@FEW
@given(pair=program_pairs(), cost=costs())
def test_no_program_of_the_same_work_beats_the_lower_bound(pair: tuple[Program, Program], cost: Costs) -> None:
    one, other = (simulate(program, cost) for program in pair)
    assert one.lower_bound_ns == other.lower_bound_ns
    assert one.lower_bound_ns is not None
    assert one.lower_bound_ns <= min(one.makespan_ns, other.makespan_ns)
