"""Lowering: add the transfers that a program's order implies.

A result is sent right after the action that makes it, and received right before the action that needs it. A pipeline
edge between stages on the same lanes is handed over on each of them, without a transfer. A boundary always has its
transfers, since rows may have to cross ranks of one lane; only lanes that run the producer for a microbatch send it,
and a microbatch that nobody produces for has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program


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


class _Implied(NamedTuple):
    """A transfer of every microbatch of an action.

    Args:
        edge: the boundary, or the module of both stages.
        kind: of the transfer.
        producer: only of microbatches that this module makes something for; None for all.
    """

    edge: str
    kind: Kind
    producer: str | None = None


_NOTHING: tuple[list[_Implied], list[_Implied]] = ([], [])


class _Lowering:
    """Adds transfers to the lists of lanes.

    Args:
        topology: of the program.
        produced: (module, microbatch) pairs for which some lane runs a forward.
    """

    def __init__(self, topology: Topology, produced: frozenset[tuple[str, int]]) -> None:
        self._produced = produced
        # By module, stage and kind of an action: what it receives before it, and what it sends after it.
        self._implied: dict[tuple[str, int, Kind], tuple[list[_Implied], list[_Implied]]] = {}
        for module in topology.modules:
            for stage in range(module.num_stages):
                forward, backward = _forward(topology, module, stage), _backward(topology, module, stage)
                self._implied |= {
                    (module.name, stage, kind): of
                    for kind, of in ((Kind.F, forward), (Kind.B, backward), (Kind.I, backward))
                }

    def lane(self, actions: Iterable[Action]) -> Iterator[Action]:
        for action in actions:
            parts = action.parts or (action,)
            implied = [self._implied.get((part.module, part.stage, part.kind), _NOTHING) for part in parts]
            for part, (received, _) in zip(parts, implied, strict=True):
                if received:
                    yield from self._transfers(part, received)
            yield action
            for part, (_, sent) in zip(parts, implied, strict=True):
                if sent:
                    yield from self._transfers(part, sent)

    def _transfers(self, of: Action, implied: Sequence[_Implied]) -> list[Action]:
        return [
            Action(edge, of.stage, kind, m, m)
            for m in of.microbatches
            for edge, kind, producer in implied
            if producer is None or (producer, m) in self._produced
        ]


def _forward(topology: Topology, module: ModuleOnLanes, stage: int) -> tuple[list[_Implied], list[_Implied]]:
    """What a forward receives and sends."""
    received, sent = [], []
    if _has_before(module, stage):
        received.append(_Implied(module.name, Kind.RECV_F))
    received += [_Implied(edge.name, Kind.RECV_F, edge.producer) for edge in _incoming(topology, module, stage)]
    if _has_after(module, stage):
        sent.append(_Implied(module.name, Kind.SEND_F))
    sent += [_Implied(edge.name, Kind.SEND_F) for edge in _outgoing(topology, module, stage)]
    return received, sent


def _backward(topology: Topology, module: ModuleOnLanes, stage: int) -> tuple[list[_Implied], list[_Implied]]:
    """What a backward, or the half of it that gives the gradient of its input, receives and sends."""
    received, sent = [], []
    if _has_after(module, stage):
        received.append(_Implied(module.name, Kind.RECV_B))
    received += [_Implied(edge.name, Kind.RECV_B) for edge in _outgoing(topology, module, stage)]
    if _has_before(module, stage):
        sent.append(_Implied(module.name, Kind.SEND_B))
    sent += [
        _Implied(edge.name, Kind.SEND_B, edge.producer)
        for edge in _incoming(topology, module, stage)
        if topology.module(edge.producer).has_backward
    ]
    return received, sent


def _incoming(topology: Topology, module: ModuleOnLanes, stage: int) -> list[Edge]:
    return [edge for edge in topology.edges if edge.consumer == module.name and edge.stage == stage]


def _outgoing(topology: Topology, module: ModuleOnLanes, stage: int) -> list[Edge]:
    return [edge for edge in topology.edges if edge.producer == module.name and stage == module.num_stages - 1]


def _has_before(module: ModuleOnLanes, stage: int) -> bool:
    """Whether the stage before lies on other lanes."""
    return stage > 0 and not _handed_over(module, stage - 1)


def _has_after(module: ModuleOnLanes, stage: int) -> bool:
    """Whether the stage after lies on other lanes."""
    return stage < module.num_stages - 1 and not _handed_over(module, stage)


def _handed_over(module: ModuleOnLanes, stage: int) -> bool:
    """Whether ``stage`` and the next lie on the same lanes: each replica then has both on its own ranks."""
    return module.stages[stage] == module.stages[stage + 1]
