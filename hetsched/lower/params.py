"""Lowering: add the gradient reduction of every stage that trains, once per step."""

from __future__ import annotations

from hetsched.schedule.action import Kind, act
from hetsched.schedule.program import Program


def lower_gradient_reduction(program: Program, *, trained: frozenset[str]) -> Program:
    """The program with one REDUCE_GRAD per stage of the modules in ``trained``, at the end of its lanes.

    A collective needs the same order on all lanes that enter it, so the reductions follow all
    other work, in the order of the topology's modules and their stages.
    """
    lanes = [list(actions) for actions in program.lanes]
    for module in program.topology.modules:
        if module.name not in trained:
            continue
        for stage in range(module.num_stages):
            reduction = act(module.name, stage, Kind.REDUCE_GRAD)
            for lane in module.lanes(stage):
                lanes[lane].append(reduction)
    return Program(program.topology, program.num_microbatches, tuple(map(tuple, lanes)))
