"""A program as flat integers, the form in which the compiled engine takes it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from hetsched import _core
from hetsched.errors import ScheduleError
from hetsched.layout.placement import Topology
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program

# In the order of csrc/core/program.h.
KINDS = (
    *(Kind.F, Kind.B, Kind.I, Kind.W, Kind.SEND_F, Kind.RECV_F, Kind.SEND_B, Kind.RECV_B),
    *(Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRAD),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a program cannot be wired; lanes and positions in their lists are -1 where there is none.

    Args:
        kind: index into the enum FaultKind of csrc/core/program.h.
        lane, position: the action at fault.
        other_lane, other_position: the one it is at odds with.
        wanted: an action that the fault is about.
    """

    kind: int
    lane: int
    position: int
    other_lane: int
    other_position: int
    wanted: Action | None


@dataclass(frozen=True)
class FlatProgram:
    """A checked program, ready to run in the engine.

    Args:
        program: what it was made from.
        names: number of each module, then of each edge.
        lane_begin: number of the first action of each lane, actions being numbered lane by lane.
        compiled: the engine's own form.
    """

    program: Program
    names: dict[str, int]
    lane_begin: tuple[int, ...]
    compiled: _core.CompiledProgram


def flatten(program: Program) -> FlatProgram | Fault:
    """The flat form of a lowered program, or the first fault found in it.

    Raises:
        ScheduleError: the topology or an action's name makes no sense.
    """
    topology = program.topology
    numbers = {module.name: number for number, module in enumerate(topology.modules)}
    names = {name: n for n, name in enumerate([*numbers, *(edge.name for edge in topology.edges)])}
    _check_topology(topology, num_names=len(names))
    if program.num_microbatches < 1 or len(program.lanes) != topology.num_lanes:
        raise ScheduleError(
            f"{len(program.lanes)} lists of actions for {topology.num_lanes} lanes and "
            f"{program.num_microbatches} microbatches; each lane needs one list, and a step at least one microbatch"
        )
    try:
        answer = _core.compile_program(
            lanes=program.lanes,
            num_microbatches=program.num_microbatches,
            modules=[(module.stages, module.has_backward, module.takes_items) for module in topology.modules],
            edges=[(numbers[edge.producer], numbers[edge.consumer], edge.stage) for edge in topology.edges],
            kinds=KINDS,
            names=names,
        )
    except ValueError as error:
        raise ScheduleError(str(error)) from None
    if isinstance(answer, tuple):
        return _fault(program, answer)
    return FlatProgram(program, names, tuple(accumulate(map(len, program.lanes), initial=0)), answer)


def _check_topology(topology: Topology, *, num_names: int) -> None:
    modules = {module.name: module for module in topology.modules}
    if num_names != len(topology.modules) + len(topology.edges):
        raise ScheduleError("two modules or two edges of the topology have the same name")
    for module in topology.modules:
        for stage, gangs in enumerate(module.stages):
            lanes = [lane for gang in gangs for lane in gang]
            if not lanes or len(set(lanes)) < len(lanes) or not set(lanes) <= set(range(topology.num_lanes)):
                raise ScheduleError(f"{module.name}:{stage} lies on lanes {lanes} of {topology.num_lanes}; each once")
        if not module.stages:
            raise ScheduleError(f"module {module.name} has no stages")
    for edge in topology.edges:
        if edge.producer not in modules or edge.consumer not in modules:
            raise ScheduleError(f"edge {edge.name}: the topology has no such modules; it has {', '.join(modules)}")
        if not 0 <= edge.stage < modules[edge.consumer].num_stages:
            raise ScheduleError(f"edge {edge.name}: {edge.consumer} has no stage {edge.stage}")


def _fault(program: Program, answer: _core.FaultTuple) -> Fault:
    kind, lane, action, other_lane, other_action, wanted = answer
    starts = list(accumulate(map(len, program.lanes), initial=0))
    names = [module.name for module in program.topology.modules] + [edge.name for edge in program.topology.edges]

    def position(lane: int, action: int) -> int:
        return -1 if action < 0 else action - starts[lane]

    part = None
    if wanted is not None:
        code, name, stage, first, last = wanted
        part = Action(names[name], stage, KINDS[code], *((first, last) if first <= last else (None, None)))
    return Fault(kind, lane, position(lane, action), other_lane, position(other_lane, other_action), part)
