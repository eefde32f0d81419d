"""The program of a step: the pipeline, the encoders in it, transfers and reductions, checked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hetsched.check.validate import validate
from hetsched.estimate import typical_costs, typical_loads
from hetsched.graph import make_topology
from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.plan import Plan
from hetsched.schedule.encoder import EncoderLoads, Placement, place_encoders
from hetsched.schedule.program import Program
from hetsched.schedule.registry import forwards_only, sink_lanes
from hetsched.schedule.table import ActionTable
from hetsched.sim.costs import Costs


def depends_on_batch(plan: Plan) -> bool:
    """Whether the steps of a plan have programs of their own."""
    return plan.schedule.encoder == "fill"


def place_step(plan: Plan, loads: EncoderLoads | None, *, is_training: bool = True) -> Placement:
    """A step's program, lowered and checked, and which lane does which items.

    Args:
        plan: the job's plan.
        loads: of the batch; None where the program does not depend on it.
        is_training: False for the forwards alone.
    """
    topology, _ = make_topology(plan)
    lanes = sink_lanes(topology, sink=plan.sink, pipeline=plan.schedule.pipeline, num_microbatches=plan.microbatches)
    placement = place_encoders(
        topology,
        lanes,
        num_microbatches=plan.microbatches,
        policy=plan.schedule.encoder,
        loads=loads,
        options=plan.schedule.options,
    )
    program = lower_transfers(placement.program if is_training else forwards_only(placement.program))
    if is_training:
        trained = frozenset(name for name, module in plan.modules.items() if not module.frozen)
        program = lower_gradient_reduction(program, trained=trained)
    validate(program)
    return replace(placement, program=program)


@cache
def typical_placement(plan: Plan, *, is_training: bool = True) -> Placement:
    """``place_step`` for a batch that nobody has seen, or for every batch where the program does not depend on it."""
    return place_step(plan, typical_loads(plan) if depends_on_batch(plan) else None, is_training=is_training)


def step_program(plan: Plan) -> Program:
    """The lowered and checked program of a plan's steps, of a typical one if each has its own."""
    return typical_placement(plan).program


def step_costs(plan: Plan) -> Costs:
    """What the actions of ``step_program`` cost; only their ratios say something."""
    costs = typical_costs(plan)
    of_encoders = typical_placement(plan).durations_ns
    return replace(costs, durations_ns=ActionTable({**costs.durations_ns.values, **of_encoders}))
