"""A program: for each lane one totally ordered list of actions, and the module graph it is about."""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.schedule.action import Action


@dataclass(frozen=True, slots=True)
class ModuleOnLanes:
    """Where the stages of a module run.

    Args:
        name: the module.
        stages: for each stage the *gangs* that run it. A gang is a tuple of lanes that run an action at
            once; nearly always one lane. A stage with several gangs has several replicas on different
            lanes, each with its share of a microbatch.
        is_trainable: a frozen module has forwards only.
        takes_items: the module's work is items, and any replica may take any of them, so that
            a microbatch may be absent from a gang. Otherwise every gang runs every microbatch.
    """

    name: str
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    is_trainable: bool = True
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


@dataclass(frozen=True, slots=True)
class Program:
    """What every lane does in one step.

    Args:
        topology: the module graph on lanes.
        num_microbatches: microbatches of the step.
        lanes: for each lane its actions, in the order of execution.
    """

    topology: Topology
    num_microbatches: int
    lanes: tuple[tuple[Action, ...], ...]
