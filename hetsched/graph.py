"""The module graph of a plan on lanes."""

from __future__ import annotations

from functools import cache

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology, find_gangs, find_lanes
from hetsched.plan import Plan


@cache
def make_topology(plan: Plan) -> tuple[Topology, tuple[tuple[int, ...], ...]]:
    """The module graph on lanes, and the ranks of each lane."""
    lanes = find_lanes(plan.grids)
    lane_of = {rank: lane for lane, ranks in enumerate(lanes) for rank in ranks}
    modules = tuple(
        ModuleOnLanes(
            name=name,
            stages=tuple(
                find_gangs(grid, pp=plan.pipeline_rank(name, stage), lane_of=lane_of)
                for stage in range(grid.layout.num_stages)
            ),
            has_backward=plan.has_backward(name),
            takes_items=name != plan.sink,
        )
        for name, grid in plan.grids.items()
    )
    edges = tuple(Edge(b.producer, b.consumer, b.stage) for b in plan.boundaries)
    return Topology(len(lanes), modules, edges), lanes


@cache
def replicas_on_lanes(plan: Plan, module: str) -> dict[int, tuple[int, ...]]:
    """For each lane of a module's last stage the replicas (dp coordinates) that have ranks there."""
    topology, lanes = make_topology(plan)
    grid = plan.grids[module]
    last = grid.layout.num_stages - 1
    ranks = [set(grid.replica(dp, plan.pipeline_rank(module, last))) for dp in range(grid.layout.dp)]
    return {
        lane: tuple(dp for dp, of_replica in enumerate(ranks) if of_replica & set(lanes[lane]))
        for lane in topology.module(module).lanes(last)
    }
