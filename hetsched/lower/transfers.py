"""Lowering: add the transfers that a program's order implies.

A result is sent right after the action that makes it, and received right before the action that
needs it. A pipeline edge between stages of one lane is handed over without a transfer. A boundary always has its
transfers, since rows may have to cross ranks of one lane; only lanes that run the producer for a
microbatch send it, and a microbatch that nobody produces for has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.program import Program

_GIVES_INPUT_GRADIENT = (Kind.B, Kind.I)


def lower_transfers(program: Program) -> Program:
    """The program with SEND_F, RECV_F, SEND_B and RECV_B actions in place."""
    lowering = _Lowering(program.topology, _produced(program))
    lanes = tuple(tuple(lowering.lane(actions)) for actions in program.lanes)
    return Program(program.topology, program.num_microbatches, lanes)


def _produced(program: Program) -> frozenset[tuple[str, int]]:
    """(module, microbatch) pairs for which some lane runs a forward."""
    return frozenset(
        (a.module, m)
        for lane in program.lanes
        for action in lane
        for a in action.flat()
        if a.kind is Kind.F
        for m in a.microbatches
    )


@dataclass(frozen=True)
class _Lowering:
    topology: Topology
    produced: frozenset[tuple[str, int]]

    def lane(self, actions: Iterable[Action]) -> Iterator[Action]:
        for action in actions:
            for part in action.flat():
                yield from self._receives(part)
            yield action
            for part in action.flat():
                yield from self._sends(part)

    def _receives(self, a: Action) -> Iterator[Action]:
        module = self.topology.module(a.module)
        for m in a.microbatches:
            if a.kind is Kind.F:
                if a.stage > 0 and not _handed_over(module, a.stage - 1):
                    yield act(a.module, a.stage, Kind.RECV_F, m)
                for edge in self._incoming(a, m):
                    yield act(edge.name, a.stage, Kind.RECV_F, m)
            elif a.kind in _GIVES_INPUT_GRADIENT:
                if a.stage + 1 < module.num_stages and not _handed_over(module, a.stage):
                    yield act(a.module, a.stage, Kind.RECV_B, m)
                for edge in self._outgoing(a):
                    yield act(edge.name, a.stage, Kind.RECV_B, m)

    def _sends(self, a: Action) -> Iterator[Action]:
        module = self.topology.module(a.module)
        for m in a.microbatches:
            if a.kind is Kind.F:
                if a.stage + 1 < module.num_stages and not _handed_over(module, a.stage):
                    yield act(a.module, a.stage, Kind.SEND_F, m)
                for edge in self._outgoing(a):
                    yield act(edge.name, a.stage, Kind.SEND_F, m)
            elif a.kind in _GIVES_INPUT_GRADIENT:
                if a.stage > 0 and not _handed_over(module, a.stage - 1):
                    yield act(a.module, a.stage, Kind.SEND_B, m)
                for edge in self._incoming(a, m):
                    if self.topology.module(edge.producer).has_backward:
                        yield act(edge.name, a.stage, Kind.SEND_B, m)

    def _incoming(self, a: Action, microbatch: int) -> list[Edge]:
        """Boundaries that bring rows of this microbatch to this action's stage."""
        return [
            edge
            for edge in self.topology.edges
            if edge.consumer == a.module and edge.stage == a.stage and (edge.producer, microbatch) in self.produced
        ]

    def _outgoing(self, a: Action) -> list[Edge]:
        """Boundaries that this action's stage feeds."""
        last = self.topology.module(a.module).num_stages - 1
        return [edge for edge in self.topology.edges if edge.producer == a.module and a.stage == last]


def _handed_over(module: ModuleOnLanes, stage: int) -> bool:
    """Whether ``stage`` and the next lie on the same single lane."""
    return module.stages[stage] == module.stages[stage + 1] and len(module.stages[stage]) == 1
