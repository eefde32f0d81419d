"""Programs of an LLM with encoders on all of its lanes, to place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder import EncoderLoads, ItemCost, Placement, PlacementOptions, place_encoders
from hetsched.schedule.registry import sink_lanes
from hetsched.schedule.table import ActionTable, Pattern
from hetsched.sim.costs import Costs
from hetsched.sim.encoder import encoder_in_flight
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Timeline
from tests.plan.literal import pipeline, replicated
from tests.plan.pipelines import lanes_of_stages

LLM_COSTS = {Kind.F: 2, Kind.B: 4, Kind.I: 2, Kind.W: 2, Kind.OVERLAP_F_B: 6}
Items = Sequence[Sequence[ItemCost]]


@dataclass(frozen=True)
class Placed:
    """What was decided, and how it runs: ``in_flight`` is of each encoder."""

    placement: Placement
    timeline: Timeline
    in_flight: Mapping[str, int]


@dataclass(frozen=True)
class Step:
    """A step to be placed.

    Args:
        topology: of the LLM and its encoders.
        lanes: the LLM's actions.
        items: of each encoder and microbatch.
        durations: of the LLM's actions, by kind.
    """

    topology: Topology
    lanes: Sequence[Sequence[Action]]
    items: Mapping[str, Items]
    durations: Mapping[Kind, int]

    @property
    def num_microbatches(self) -> int:
        return len(next(iter(self.items.values())))

    def place(self, policy: str = "fill", **options: int | bool | None) -> Placement:
        """The placement, not yet timed."""
        return place_encoders(
            self.topology,
            self.lanes,
            num_microbatches=self.num_microbatches,
            policy=policy,
            loads=EncoderLoads(lambda action, lane: self.durations[action.kind], self.items),
            options=replace(PlacementOptions(), **options),
        )

    def run(self, policy: str = "fill", **options: int | bool | None) -> Placed:
        """The placement, lowered, checked and simulated; it may not wait in a circle."""
        placement = self.place(policy, **options)
        table: dict[Pattern, int] = {Pattern(kind, "llm"): duration for kind, duration in self.durations.items()}
        costs = Costs(ActionTable({**table, **placement.durations_ns}))
        timeline = simulate(lower_transfers(placement.program), costs)
        again = placement.recomputed
        held = {name: encoder_in_flight(timeline, name, recomputed=again.get(name, ())) for name in self.items}
        return Placed(placement, timeline, held)


def step(
    schedule: str,
    num_lanes: int,
    items: Items | Mapping[str, Items],
    *,
    encoders: Sequence[ModuleOnLanes] = (),
    durations: Mapping[Kind, int] | None = None,
) -> Step:
    """A schedule on lanes 0 to ``num_lanes - 1`` with encoders, one called vision on all of these if left out."""
    llm = pipeline(*([lane] for lane in lanes_of_stages(schedule, num_lanes)))
    encoders = encoders or (replicated(*range(num_lanes)),)
    of_encoder = items if isinstance(items, Mapping) else {encoders[0].name: items}
    num_all = 1 + max(num_lanes - 1, *(lane for encoder in encoders for lane in encoder.lanes(0)))
    topology = Topology(num_all, (*encoders, llm), tuple(Edge(encoder.name, "llm") for encoder in encoders))
    num_microbatches = len(next(iter(of_encoder.values())))
    lanes = sink_lanes(topology, sink="llm", pipeline=schedule, num_microbatches=num_microbatches)
    return Step(topology, lanes, of_encoder, durations or LLM_COSTS)


def even(num_microbatches: int, forward: int, backward: int, *, num_items: int = 1) -> Items:
    """Microbatches of equal items."""
    return [[ItemCost(forward, backward)] * num_items for _ in range(num_microbatches)]
