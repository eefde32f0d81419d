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
_AT_ENTRANCE = (Kind.RECV_F, Kind.SEND_B)
"""Transfers with the stage before and over incoming boundaries; the others are with the stage after and outgoing."""


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


@dataclass(frozen=True, slots=True)
class _Ends:
    """What reaches and leaves one stage of a module.

    Args:
        has_before, has_after: the stage before or after it lies on other lanes.
        incoming, outgoing: boundaries that bring it rows, and that it feeds.
        returning: those incoming ones whose producer has a backward.
    """

    has_before: bool
    has_after: bool
    incoming: tuple[Edge, ...]
    outgoing: tuple[Edge, ...]
    returning: frozenset[str]

    @classmethod
    def of(cls, topology: Topology, module: ModuleOnLanes, stage: int) -> _Ends:
        last = module.num_stages - 1
        incoming = tuple(e for e in topology.edges if e.consumer == module.name and e.stage == stage)
        return cls(
            has_before=stage > 0 and not _handed_over(module, stage - 1),
            has_after=stage < last and not _handed_over(module, stage),
            incoming=incoming,
            outgoing=tuple(e for e in topology.edges if e.producer == module.name and stage == last),
            returning=frozenset(e.name for e in incoming if topology.module(e.producer).has_backward),
        )


class _Lowering:
    """Adds transfers to the lists of lanes.

    Args:
        topology: of the program.
        produced: (module, microbatch) pairs for which some lane runs a forward.
    """

    def __init__(self, topology: Topology, produced: frozenset[tuple[str, int]]) -> None:
        self._produced = produced
        self._ends = {
            (module.name, stage): _Ends.of(topology, module, stage)
            for module in topology.modules
            for stage in range(module.num_stages)
        }

    def lane(self, actions: Iterable[Action]) -> Iterator[Action]:
        for action in actions:
            for part in action.flat():
                yield from self._transfers(part, Kind.RECV_F, Kind.RECV_B)
            yield action
            for part in action.flat():
                yield from self._transfers(part, Kind.SEND_F, Kind.SEND_B)

    def _transfers(self, a: Action, forward: Kind, backward: Kind) -> Iterator[Action]:
        """What an action receives before it or sends after it, by transfers of the kind of its own direction."""
        is_forward = a.kind is Kind.F
        if not is_forward and a.kind not in _GIVES_INPUT_GRADIENT:
            return
        kind, ends = forward if is_forward else backward, self._ends[a.module, a.stage]
        is_entrance = kind in _AT_ENTRANCE
        for m in a.microbatches:
            if ends.has_before if is_entrance else ends.has_after:
                yield act(a.module, a.stage, kind, m)
            if not is_entrance:
                for edge in ends.outgoing:
                    yield act(edge.name, a.stage, kind, m)
            else:
                for edge in ends.incoming:
                    if (edge.producer, m) in self._produced and (is_forward or edge.name in ends.returning):
                        yield act(edge.name, a.stage, kind, m)


def _handed_over(module: ModuleOnLanes, stage: int) -> bool:
    """Whether ``stage`` and the next lie on the same single lane."""
    return module.stages[stage] == module.stages[stage + 1] and len(module.stages[stage]) == 1
