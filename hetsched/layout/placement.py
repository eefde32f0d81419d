"""From grids to lanes: which ranks every module's layout treats alike, and the module graph on them.

A lane is a maximal set of ranks with the same pipeline coordinate in every module's grid (or outside
it). Data-parallel replicas share a lane: the microbatch index is common to them, so they run the
same list of actions, each on its own samples and items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hetsched.layout.grid import Grid


class StageOrder(StrEnum):
    """How a module's stages lie on its P pipeline ranks."""

    LOOP = "loop"
    """Stage s on rank s mod P."""
    V = "v"
    """Down and up again: stages s and 2P - 1 - s on rank s."""

    def pipeline_rank(self, stage: int, *, pp: int) -> int:
        """The pipeline rank of a stage."""
        place = stage % pp
        is_way_back = self is StageOrder.V and stage // pp % 2 == 1
        return pp - 1 - place if is_way_back else place


@dataclass(frozen=True, slots=True)
class ModuleOnLanes:
    """Where the stages of a module run.

    Args:
        name: the module.
        stages: for each stage the *gangs* that run it. A gang is a tuple of lanes that run an action at
            once; nearly always one lane. A stage with several gangs has several replicas on different
            lanes, each with its share of a microbatch. Between stages of as many gangs the i-th feeds the i-th.
        has_backward: False for a module that is frozen and behind which nothing trains: forwards only.
        takes_items: the module's work is items, and any replica may take any of them, so that
            a microbatch may be absent from a gang. Otherwise every gang runs every microbatch.
    """

    name: str
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    has_backward: bool = True
    takes_items: bool = False

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    def lanes(self, stage: int) -> tuple[int, ...]:
        """All lanes that run the stage, ascending."""
        return tuple(sorted({lane for gang in self.stages[stage] for lane in gang}))


@dataclass(frozen=True, slots=True)
class Edge:
    """A boundary: rows of ``producer``'s last stage enter ``consumer`` at ``stage``."""

    producer: str
    consumer: str
    stage: int = 0

    @property
    def name(self) -> str:
        return f"{self.producer}->{self.consumer}"


@dataclass(frozen=True, slots=True)
class Topology:
    """The module graph on lanes, all that a schedule needs to know of a plan."""

    num_lanes: int
    modules: tuple[ModuleOnLanes, ...]
    edges: tuple[Edge, ...] = ()

    def module(self, name: str) -> ModuleOnLanes:
        return next(m for m in self.modules if m.name == name)

    def edge(self, name: str) -> Edge:
        return next(e for e in self.edges if e.name == name)


def find_lanes(grids: Mapping[str, Grid]) -> tuple[tuple[int, ...], ...]:
    """The ranks of each lane; ranks ascend within a lane, lanes by their smallest rank."""
    by_signature: dict[tuple[int | None, ...], list[int]] = {}
    for rank in sorted({rank for grid in grids.values() for rank in grid.ranks}):
        signature = tuple(grid.coordinates(rank).pp if rank in grid else None for grid in grids.values())
        by_signature.setdefault(signature, []).append(rank)
    return tuple(tuple(ranks) for ranks in by_signature.values())


def find_gangs(grid: Grid, *, pp: int, lane_of: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
    """The gangs of one pipeline rank: lanes that share a replica's tp x cp ranks belong together.

    They are in the order of their first replicas, so that the i-th gang of one stage feeds the i-th of the next.
    """
    gangs: list[set[int]] = []
    for dp in range(grid.layout.dp):
        gang = {lane_of[rank] for rank in grid.replica(dp, pp)}
        shared = [g for g in gangs if g & gang]
        for other in shared[1:]:
            gangs.remove(other)
            gang |= other
        if shared:
            shared[0] |= gang
        else:
            gangs.append(gang)
    return tuple(tuple(sorted(gang)) for gang in gangs)
