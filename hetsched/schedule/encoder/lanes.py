"""Which lanes an encoder has, and which of them a policy gives work to."""

from __future__ import annotations

from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action

Lanes = list[list[Action]]


def encoder_lanes(topology: Topology, edge: Edge, *, policy: str) -> tuple[int, ...]:
    """The lanes whose replicas of the edge's producer may be given items."""
    last = topology.module(edge.producer).num_stages - 1
    lanes = topology.module(edge.producer).lanes(last)
    if policy != "stage0":
        return lanes
    shared = set(lanes) & set(topology.module(edge.consumer).lanes(edge.stage))
    return tuple(lane for lane in lanes if lane in shared) or lanes


def require_single_lanes(encoder: ModuleOnLanes, *, policy: str) -> None:
    """Refuses an encoder whose replicas are more than one stage on one lane.

    Raises:
        ScheduleError: see above.
    """
    if encoder.num_stages > 1 or any(len(gang) > 1 for gang in encoder.stages[0]):
        raise ScheduleError(
            f"encoder policy {policy}: {encoder.name} has {encoder.num_stages} stages on {encoder.stages}; "
            "it places encoders of one stage, each replica on one lane: use three_phase or stage0 for others"
        )
