"""``stage0``: the encoder is a part of the LLM stage it feeds: forward just before that stage's, backward just after.

Replicas on other lanes get no work, if some are on that stage's (``encoder_lanes`` says where work may go); otherwise
they follow its order, or, on lanes of other stages, are placed around these stages' work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.encoder.lanes import Lanes, encoder_lanes, stages_on_lanes


def stage0(topology: Topology, edge: Edge, lanes: Lanes, num_microbatches: int) -> None:
    """Adds the encoder's actions to the lanes of that stage, or to its own."""
    encoder = topology.module(edge.producer)
    consumer_lanes = topology.module(edge.consumer).lanes(edge.stage)
    on_lane = (part for action in lanes[consumer_lanes[0]] for part in action.flat())
    order = [part for part in on_lane if part.module == edge.consumer and part.stage == edge.stage]
    allowed = encoder_lanes(topology, edge, policy="stage0")
    for stage, lane in stages_on_lanes(encoder):
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
