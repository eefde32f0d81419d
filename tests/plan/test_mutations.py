"""A program that was changed at random is refused, or it still gives every weight the gradient that it should have."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st

from hetsched.check.validate import validate
from hetsched.errors import ScheduleError
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program
from tests.plan.random_programs import programs
from tests.plan.twin import RECEIVES, SENDS, other_end, peers

Outcome = dict[tuple[str, int, int], Counter[Any]]


class Interpreter:
    """Runs a program on expressions. Messages carry no label: a RECV takes what its channel has next."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.channels: dict[tuple[Any, ...], deque[Any]] = defaultdict(deque)
        self.values: list[dict[tuple[str, str, int, int | None], Any]] = [{} for _ in program.lanes]
        self.gradients: Outcome = defaultdict(Counter)
        self.reduced: set[tuple[str, int, int]] = set()

    def run(self) -> Outcome | None:
        """For each stage on each lane what its weights' gradient is a sum of, or None if the lanes do not end."""
        todo = [deque(actions) for actions in self.program.lanes]
        while any(todo):
            moved = False
            for lane, actions in enumerate(todo):
                while actions and self.do(lane, actions[0]):
                    actions.popleft()
                    moved = True
            if not moved:
                return None
        return self.gradients

    def do(self, lane: int, action: Action) -> bool:
        """One action; False if it has to wait."""
        if action.kind in SENDS:
            for peer in peers(self.program, lane, action):
                key = self.channel(lane, peer, other_end(self.program, action))
                self.channels[key].append(self.result(lane, action))
            return True
        if action.kind in RECEIVES:
            keys = [self.channel(peer, lane, action) for peer in peers(self.program, lane, action)]
            if not all(self.channels[key] for key in keys):
                return False
            arrived = tuple(self.channels[key].popleft() for key in keys)
            self.values[lane][action.kind, action.module, action.stage, action.first] = arrived
            return True
        if action.kind is Kind.REDUCE_GRAD:
            self.reduced.add((action.module, action.stage, lane))
            return True
        for part in action.flat():
            for m in part.microbatches:
                self.compute(lane, part, m)
        return True

    def channel(self, source: int, destination: int, receive: Action) -> tuple[Any, ...]:
        return source, destination, receive.module, receive.stage, receive.kind

    def result(self, lane: int, send: Action) -> Any:
        module, stage = send.module, send.stage
        if "->" in module:
            edge = self.program.topology.edge(module)
            module = edge.producer if send.kind is Kind.SEND_F else edge.consumer
        kind = Kind.F if send.kind is Kind.SEND_F else Kind.B
        return self.values[lane].get((kind, module, stage, send.first))

    def compute(self, lane: int, part: Action, m: int) -> None:
        name, stage, values = part.module, part.stage, self.values[lane]
        edges = self.program.topology.edges
        last = self.program.topology.module(name).num_stages - 1
        if part.kind is Kind.F:
            inputs = [
                values.get((Kind.RECV_F, e.name, stage, m)) for e in edges if (e.consumer, e.stage) == (name, stage)
            ]
            inputs += [values.get((Kind.RECV_F, name, stage, m)) or values.get((Kind.F, name, stage - 1, m))]
            values[Kind.F, name, stage, m] = ("F", name, stage, m, *inputs)
            return
        if part.kind is not Kind.W:
            inputs = [
                values.get((Kind.RECV_B, e.name, stage, m)) for e in edges if e.producer == name and stage == last
            ]
            inputs += [values.get((Kind.RECV_B, name, stage, m)) or values.get((Kind.B, name, stage + 1, m))]
            values[Kind.B, name, stage, m] = ("B", name, stage, m, values.get((Kind.F, name, stage, m)), *inputs)
        if part.kind is not Kind.I:
            is_late = (name, stage, lane) in self.reduced
            self.gradients[name, stage, lane][is_late, values.get((Kind.B, name, stage, m))] += 1


@st.composite
def mutations(draw: st.DrawFn) -> tuple[Program, Program]:
    """A sound program, and the same with one to three actions moved, swapped, removed, doubled or renumbered."""
    program = draw(programs())
    lanes = [list(actions) for actions in program.lanes]
    for _ in range(draw(st.integers(1, 3))):
        lane = draw(st.sampled_from([actions for actions in lanes if len(actions) > 1]))
        i, j = (draw(st.integers(0, len(lane) - 1)) for _ in range(2))
        how = draw(st.sampled_from(["move", "swap", "remove", "double", "renumber"]))
        if how == "move":
            lane.insert(j, lane.pop(i))
        elif how == "swap":
            lane[i], lane[j] = lane[j], lane[i]
        elif how == "remove":
            lane.pop(i)
        elif how == "double":
            lane.insert(j, lane[i])
        elif lane[i].first is not None:
            m = draw(st.integers(0, program.num_microbatches))
            lane[i] = lane[i]._replace(first=m, last=m)
    return program, replace(program, lanes=tuple(map(tuple, lanes)))


def is_forward_only(program: Program) -> bool:
    return not any(part.kind in (Kind.B, Kind.I, Kind.W) for lane in program.lanes for a in lane for part in a.flat())


def passes(program: Program) -> bool:
    try:
        validate(program)
    except ScheduleError:
        return False
    return True


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(pair=mutations())
def test_a_mutant_is_refused_or_gives_the_same_gradients(pair: tuple[Program, Program]) -> None:
    sound, mutant = pair
    assume(any(len(actions) > 1 for actions in sound.lanes))
    if passes(mutant) and not is_forward_only(mutant):
        found, expected = Interpreter(mutant), Interpreter(sound)
        assert found.run() == expected.run()
        # A module may do without reductions altogether: whether it needs them is not in the program.
        modules = {module for module, _, _ in found.reduced}
        assert found.reduced == {place for place in expected.reduced if place[0] in modules}


@pytest.mark.parametrize("is_refused", [True, False])
def test_both_fates_of_a_mutant_occur(is_refused: bool) -> None:
    search = settings(max_examples=500, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    find(mutations(), lambda pair: pair[0] != pair[1] and passes(pair[1]) is not is_refused, settings=search)


def test_the_interpreter_tells_swapped_receives_apart() -> None:
    """Without this the comparison would prove nothing: there are mutants that end with other gradients."""

    def is_wrong(pair: tuple[Program, Program]) -> bool:
        result = Interpreter(pair[1]).run()
        kept = [Counter(lane) for lane in pair[0].lanes] == [Counter(lane) for lane in pair[1].lanes]
        return kept and result is not None and result != Interpreter(pair[0]).run()

    search = settings(max_examples=2000, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    find(mutations(), is_wrong, settings=search)
