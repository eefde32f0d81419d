"""Lowered programs of one module for sweeps over many sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from hetsched.layout.placement import ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.dualpipev import dualpipev
from hetsched.schedule.gpipe import gpipe
from hetsched.schedule.interleaved import interleaved
from hetsched.schedule.one_f_one_b import one_f_one_b
from hetsched.schedule.program import Program
from hetsched.schedule.zb_h1 import zb_h1
from hetsched.schedule.zb_v import zb_v

Rows = tuple[tuple[Action, ...], ...]

GENERATORS: dict[str, Callable[..., Rows]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zb-h1": zb_h1,
    "zb-v": zb_v,
    "dualpipev": dualpipev,
}


def lanes_of_stages(schedule: str, num_lanes: int, num_virtual: int = 2) -> list[int]:
    """The lane of each stage."""
    if schedule in ("zb-v", "dualpipev"):
        return [*range(num_lanes), *reversed(range(num_lanes))]
    return [*range(num_lanes)] * (num_virtual if schedule == "interleaved" else 1)


def unlowered(schedule: str, num_lanes: int, num_microbatches: int, **options: int) -> Program:
    """A schedule as a program of one module."""
    rows = GENERATORS[schedule](num_lanes, num_microbatches, **options)
    stages = tuple(((lane,),) for lane in lanes_of_stages(schedule, num_lanes, **options))
    return Program(Topology(num_lanes, (ModuleOnLanes("llm", stages),)), num_microbatches, rows)


def lowered(program: Program) -> Program:
    """What ``lower_transfers`` gives for one module on single lanes, with every action made but once: for sweeps."""
    stages = program.topology.modules[0].stages
    lanes = tuple(tuple(a for action in row for a in _around(action, stages)) for row in program.lanes)
    return Program(program.topology, program.num_microbatches, lanes)


@cache
def _around(action: Action, stages: tuple[tuple[tuple[int, ...], ...], ...]) -> tuple[Action, ...]:
    """An action between its receives and its sends."""
    receives, sends = [], []
    for part in action.flat():
        if part.kind is Kind.W:
            continue
        is_forward = part.kind is Kind.F
        before, after = (part.stage - 1, part.stage + 1) if is_forward else (part.stage + 1, part.stage - 1)
        if 0 <= before < len(stages) and stages[before] != stages[part.stage]:
            receives.append(act(part.module, part.stage, Kind.RECV_F if is_forward else Kind.RECV_B, part.first))
        if 0 <= after < len(stages) and stages[after] != stages[part.stage]:
            sends.append(act(part.module, part.stage, Kind.SEND_F if is_forward else Kind.SEND_B, part.first))
    return (*receives, action, *sends)
