"""``stage0``: the encoder is a part of the LLM stage it feeds: forward just before that stage's, backward just after.

Replicas on other lanes get no work, if some are on that stage's (``encoder_lanes`` says where work may go); otherwise
they follow its order, or, on lanes of other stages, are placed around these stages' work. An encoder's stage that is,
waits for all forwards of the encoder's stages before it, so these are placed so as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.encoder.lanes import Lanes, encoder_lanes


def stage0(topology: Topology, edge: Edge, lanes: Lanes, num_microbatches: int) -> None:
    """Adds the encoder's actions to the lanes of that stage, or to its own."""
    encoder = topology.module(edge.producer)
    consumer_lanes = topology.module(edge.consumer).lanes(edge.stage)
    on_lane = (part for action in lanes[consumer_lanes[0]] for part in action.flat())
    order = [part for part in on_lane if part.module == edge.consumer and part.stage == edge.stage]
    allowed = encoder_lanes(topology, edge, policy="stage0")
    is_around = False
    for stage in reversed(range(encoder.num_stages)):
        at = _working_lanes(encoder, stage, allowed)
        is_around = is_around or any(lanes[lane] and lane not in consumer_lanes for lane in at)
        for lane in at:
            if is_around:
                lanes[lane] = _around(lanes[lane], list(_followed(order, encoder, stage)))
            elif lane in consumer_lanes:
                lanes[lane] = list(_fused(lanes[lane], edge, encoder, stage))
            else:
                lanes[lane] = list(_followed(order, encoder, stage))


def _working_lanes(encoder: ModuleOnLanes, stage: int, allowed: Sequence[int]) -> list[int]:
    """The lanes of a stage whose replicas have their last stage on one of the allowed lanes."""
    gangs, last = encoder.stages[stage], encoder.stages[-1]
    if len(gangs) != len(last):
        return list(encoder.lanes(stage))
    return [lane for gang, end in zip(gangs, last, strict=True) if set(end) & set(allowed) for lane in gang]


def _around(actions: list[Action], added: list[Action]) -> list[Action]:
    """A lane's actions between the forwards and the backwards of an encoder: these wait for all of them at most."""
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
