"""Encoder placement: a pass that adds the encoders' actions to the program of the module they feed.

``three_phase``: all encoder forwards, then the LLM, then all encoder backwards (Megatron's colocated mode).
``stage0``: the encoder is a part of the LLM stage it feeds: forward just before that stage's, backward
just after. Replicas on other lanes get no work, if some are on that stage's (``encoder_lanes`` says where work may
go); otherwise they follow its order, or, on lanes of other stages, are placed around these stages' work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.program import Program

Lanes = list[list[Action]]


def place_encoders(
    topology: Topology, sink_lanes: Sequence[Sequence[Action]], *, num_microbatches: int, policy: str
) -> Program:
    """The program of the whole module graph.

    Args:
        topology: the module graph on lanes.
        sink_lanes: for each lane the compute actions of the module that computes the loss.
        num_microbatches: microbatches of the step.
        policy: a name in ``POLICIES``.
    """
    lanes = [list(actions) for actions in sink_lanes]
    for edge in topology.edges:
        POLICIES[policy](topology, edge, lanes, num_microbatches)
    return Program(topology, num_microbatches, tuple(map(tuple, lanes)))


def encoder_lanes(topology: Topology, edge: Edge, *, policy: str) -> tuple[int, ...]:
    """The lanes whose replicas of the edge's producer may be given items."""
    last = topology.module(edge.producer).num_stages - 1
    lanes = topology.module(edge.producer).lanes(last)
    if policy != "stage0":
        return lanes
    shared = set(lanes) & set(topology.module(edge.consumer).lanes(edge.stage))
    return tuple(lane for lane in lanes if lane in shared) or lanes


def _three_phase(topology: Topology, edge: Edge, lanes: Lanes, num_microbatches: int) -> None:
    encoder = topology.module(edge.producer)
    for stage, lane in _stages_on_lanes(encoder):
        forwards = [act(encoder.name, stage, Kind.F, m) for m in range(num_microbatches)]
        backwards = [act(encoder.name, stage, Kind.B, m) for m in range(num_microbatches) if encoder.has_backward]
        lanes[lane][:0] = forwards
        lanes[lane] += backwards


def _stage0(topology: Topology, edge: Edge, lanes: Lanes, num_microbatches: int) -> None:
    encoder = topology.module(edge.producer)
    consumer_lanes = topology.module(edge.consumer).lanes(edge.stage)
    on_lane = (part for action in lanes[consumer_lanes[0]] for part in action.flat())
    order = [part for part in on_lane if part.module == edge.consumer and part.stage == edge.stage]
    allowed = encoder_lanes(topology, edge, policy="stage0")
    for stage, lane in _stages_on_lanes(encoder):
        if lane in consumer_lanes:
            lanes[lane] = list(_fused(lanes[lane], edge, encoder, stage))
        elif stage < encoder.num_stages - 1 or lane in allowed:
            lanes[lane] = _around(lanes[lane], list(_followed(order, encoder, stage)))


def _around(actions: list[Action], added: list[Action]) -> list[Action]:
    """A lane's actions between the forwards and the backwards of an encoder: these wait for all of them at most."""
    if not actions:
        return added
    forwards, backwards = ([a for a in added if (a.kind is Kind.F) == is_forward] for is_forward in (True, False))
    return forwards + actions + backwards


def _fused(actions: Iterable[Action], edge: Edge, encoder: ModuleOnLanes, stage: int) -> Iterator[Action]:
    """The lane's actions with the encoder's around those of the consumer's stage."""
    for action in actions:
        parts = [part for part in action.flat() if part.module == edge.consumer and part.stage == edge.stage]
        yield from (act(encoder.name, stage, Kind.F, part.first) for part in parts if part.kind is Kind.F)
        yield action
        yield from _backwards(parts, encoder, stage)


def _followed(order: Iterable[Action], encoder: ModuleOnLanes, stage: int) -> Iterator[Action]:
    """The encoder's own actions in the order of the consumer stage's."""
    for part in order:
        if part.kind is Kind.F:
            yield act(encoder.name, stage, Kind.F, part.first)
        yield from _backwards([part], encoder, stage)


def _backwards(parts: Iterable[Action], encoder: ModuleOnLanes, stage: int) -> Iterator[Action]:
    """The encoder's backwards of the microbatches whose gradients these actions of the consumer's stage give."""
    for part in parts:
        if part.kind in (Kind.B, Kind.I) and encoder.has_backward:
            yield act(encoder.name, stage, Kind.B, part.first)


def _stages_on_lanes(encoder: ModuleOnLanes) -> list[tuple[int, int]]:
    """(stage, lane) pairs; later stages first, so that prepending forwards keeps stages in order."""
    pairs = [(stage, lane) for stage in range(encoder.num_stages) for lane in encoder.lanes(stage)]
    return pairs[::-1]


POLICIES: dict[str, Callable[[Topology, Edge, Lanes, int], None]] = {"three_phase": _three_phase, "stage0": _stage0}
