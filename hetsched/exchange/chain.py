"""A program of several modules as one chain of stages, for runtimes that know no modules.

An encoder becomes the first stages of the chain, wherever its lane is.
"""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, overlap
from hetsched.schedule.program import Program

_AT_PRODUCER = frozenset({Kind.SEND_F, Kind.RECV_B})


def as_chain(program: Program) -> Program:
    """The same program with all stages in one module, that of the loss, numbered in the order in which rows pass.

    A boundary becomes a step from one stage to the next; where both lie on one lane its transfers are left out.

    Raises:
        ScheduleError: the modules are no chain, or a stage runs on several lanes.
    """
    modules = _in_order(program.topology)
    first, start = {}, 0
    for module in modules:
        first[module.name] = start
        start += module.num_stages
    numbering = _Numbering(program.topology, first, modules[-1].name)
    stages = tuple(gangs for module in modules for gangs in module.stages)
    chain = ModuleOnLanes(numbering.name, stages, all(module.has_backward for module in modules))
    lanes = tuple(
        tuple(numbering.renamed(action) for action in actions if not numbering.is_local(action))
        for actions in program.lanes
    )
    return Program(Topology(len(lanes), (chain,)), program.num_microbatches, lanes)


@dataclass(frozen=True, slots=True)
class _Numbering:
    """The stages of all modules in one row.

    Args:
        topology: the module graph on lanes.
        first: module -> number of its first stage.
        name: of the module that holds them all.
    """

    topology: Topology
    first: dict[str, int]
    name: str

    def renamed(self, action: Action) -> Action:
        if action.parts:
            forward, backward = map(self.renamed, action.parts)
            return overlap(forward, backward)
        edge, module = self._edge(action), action.module
        if edge is not None:
            module = edge.producer if action.kind in _AT_PRODUCER else edge.consumer
        return action._replace(module=self.name, stage=self.first[module] + action.stage)

    def is_local(self, action: Action) -> bool:
        """Whether the action is a transfer over a boundary within one lane."""
        edge = self._edge(action)
        if edge is None:
            return False
        return self.topology.module(edge.producer).stages[-1] == self.topology.module(edge.consumer).stages[0]

    def _edge(self, action: Action) -> Edge | None:
        return self.topology.edge(action.module) if "->" in action.module else None


def _in_order(topology: Topology) -> list[ModuleOnLanes]:
    """The modules in the order in which rows pass through them."""
    for edge in topology.edges:
        if edge.stage != 0:
            raise ScheduleError(
                f"{edge.name} enters {edge.consumer} at stage {edge.stage}; in a chain a stage takes rows from the "
                "one before it only"
            )
    producer_of = {edge.consumer: edge.producer for edge in topology.edges}
    producers = set(producer_of.values())
    names = [module.name for module in topology.modules if module.name not in producers][:1]
    while names and names[0] in producer_of and len(names) < len(topology.modules):
        names.insert(0, producer_of[names[0]])
    if len(names) != len(topology.modules) or len(topology.edges) != len(topology.modules) - 1:
        edges = ", ".join(edge.name for edge in topology.edges) or "no boundary"
        raise ScheduleError(f"{len(topology.modules)} modules with {edges} are not one chain of stages")
    modules = [topology.module(name) for name in names]
    for module in modules:
        for stage, gangs in enumerate(module.stages):
            if [len(gang) for gang in gangs] != [1]:
                raise ScheduleError(
                    f"{module.name}:{stage} runs on lanes {list(module.lanes(stage))}; in a chain each stage is on one"
                )
    return modules
