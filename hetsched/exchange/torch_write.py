"""A program as torch's schedule CSV, for the pipeline runtime of torch.

torch knows one chain of stages, each on one rank, through which every microbatch passes. An encoder becomes the first
stages of the chain, wherever its lane is; what cannot be a chain is refused.

Source: torch/distributed/pipelining/schedules.py, ``_PipelineScheduleRuntime._load_csv``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from hetsched.errors import ScheduleError
from hetsched.exchange.torch_cell import print_cell, print_pair
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program

_FORWARD_END = frozenset({Kind.SEND_F, Kind.RECV_B})


def program_to_torch_csv(program: Program, *, with_transfers: bool = False) -> str:
    """The file: row r has the actions of lane r.

    Args:
        program: sound; lowered if transfers are wanted.
        with_transfers: write transfers and collectives too (torch's ``compute_comms``). By default only compute
            actions are written (``compute_only``), and torch adds its own.

    Raises:
        ScheduleError: the modules are no chain, a stage has several replicas or no backward, an action is a window
            of microbatches, a stage leaves out a microbatch, or a lane has nothing to do.
    """
    numbering = _Numbering.of(program.topology)
    _check_complete(program)
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    for lane, actions in enumerate(program.lanes):
        row = list(_cells(actions, numbering, with_transfers))
        if not row:
            raise ScheduleError(
                f"lane {lane} has nothing to do; every row of torch's schedule CSV is a rank with stages"
            )
        writer.writerow(row)
    return out.getvalue()


def _cells(actions: tuple[Action, ...], numbering: _Numbering, with_transfers: bool) -> Iterator[str]:
    for action in actions:
        parts = [print_cell(part, stage=numbering.stage(part)) for part in action.flat()]
        if action.parts:
            yield print_pair(*parts)
        elif action.kind.is_compute or (with_transfers and not numbering.is_local(action)):
            yield from parts


@dataclass(frozen=True, slots=True)
class _Numbering:
    """The stages of all modules as one chain.

    Args:
        topology: the module graph on lanes.
        first: module -> number of its first stage.
    """

    topology: Topology
    first: dict[str, int]

    @classmethod
    def of(cls, topology: Topology) -> _Numbering:
        first, start = {}, 0
        for module in _chain(topology):
            _check_module(module)
            first[module.name] = start
            start += module.num_stages
        return cls(topology, first)

    def stage(self, action: Action) -> int:
        edge = self._edge(action)
        if edge is None:
            return self.first[action.module] + action.stage
        return self.first[edge.producer if action.kind in _FORWARD_END else edge.consumer] + action.stage

    def is_local(self, action: Action) -> bool:
        """Whether the action is a transfer between two stages of one lane, which torch hands over itself."""
        edge = self._edge(action)
        if edge is None:
            return False
        producer = self.topology.module(edge.producer)
        return producer.stages[-1] == self.topology.module(edge.consumer).stages[edge.stage]

    def _edge(self, action: Action) -> Edge | None:
        return self.topology.edge(action.module) if "->" in action.module else None


def _chain(topology: Topology) -> list[ModuleOnLanes]:
    """The modules in the order in which rows pass through them."""
    for edge in topology.edges:
        if edge.stage != 0:
            raise ScheduleError(
                f"{edge.name} enters {edge.consumer} at stage {edge.stage}; a stage of torch's takes rows from the one "
                "before it only"
            )
    producer_of = {edge.consumer: edge.producer for edge in topology.edges}
    last = [module.name for module in topology.modules if all(edge.producer != module.name for edge in topology.edges)]
    names = last[:1]
    while names and names[0] in producer_of and len(names) < len(topology.modules):
        names.insert(0, producer_of[names[0]])
    if len(names) != len(topology.modules) or len(topology.edges) != len(topology.modules) - 1:
        edges = ", ".join(edge.name for edge in topology.edges) or "no boundary"
        raise ScheduleError(f"{len(topology.modules)} modules with {edges} are not one chain of stages, as torch's are")
    return [topology.module(name) for name in names]


def _check_module(module: ModuleOnLanes) -> None:
    for stage, gangs in enumerate(module.stages):
        if [len(gang) for gang in gangs] != [1]:
            raise ScheduleError(
                f"{module.name}:{stage} runs on lanes {list(module.lanes(stage))}; a stage of torch's lies on one rank"
            )
    if not module.has_backward:
        raise ScheduleError(f"{module.name} has no backward (it is frozen); every stage of torch's has one")


def _check_complete(program: Program) -> None:
    """Refuses a program that runs a stage on a part of the microbatches only, or no backward."""
    done = {
        (part.module, part.stage, part.kind, m)
        for lane in program.lanes
        for action in lane
        for part in action.flat()
        for m in part.microbatches
    }
    for module in program.topology.modules:
        for stage in range(module.num_stages):
            for m in range(program.num_microbatches):
                if (module.name, stage, Kind.F, m) not in done:
                    raise ScheduleError(
                        f"{module.name}:{stage}F{m} is missing; torch takes every microbatch through every stage"
                    )
                if not {(module.name, stage, kind, m) for kind in (Kind.B, Kind.I)} & done:
                    raise ScheduleError(f"{module.name}:{stage} has no backward of microbatch {m}; torch wants one")
