"""The plan of one step: packing, assignment, routes and program, from the plan and the batch's metadata.

Pure integers: every rank computes the same step plan without communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from hetsched.batch import Item, Sample
from hetsched.check.validate import validate
from hetsched.errors import DataError
from hetsched.layout.assign import attention_cost
from hetsched.layout.crossing import Crossing, Side, cross
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology, find_gangs, find_lanes
from hetsched.layout.shares import Cost, Share, share_items, share_samples
from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.plan import BoundaryPlan, Plan
from hetsched.schedule.encoder import encoder_lanes
from hetsched.schedule.program import Program
from hetsched.schedule.registry import evaluation_program, training_program


@dataclass(frozen=True)
class StepPlan:
    """What every rank does with one batch.

    Args:
        divisor: the weight of the global batch, which divides the loss.
        shares: ``(module, microbatch)`` -> for each replica (dp coordinate) its share.
        crossings: ``(edge name, microbatch)`` -> who copies which rows to whom.
        program: lowered and checked.
    """

    divisor: int
    shares: Mapping[tuple[str, int], tuple[Share, ...]]
    crossings: Mapping[tuple[str, int], Crossing]
    program: Program


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


def plan_step(plan: Plan, samples: Sequence[Sample], *, is_training: bool = True) -> StepPlan:
    """The step plan of a batch.

    Args:
        plan: the job's plan.
        samples: metadata of the global batch, equal on every rank.
        is_training: False for a forward-only step.

    Raises:
        DataError: a sample whose placeholders do not fit it; the message names it.
    """
    for sample in samples:
        _check_sample(plan, sample)
    _check_keys(samples)
    divisor = sum(sample.weight for sample in samples)
    if divisor <= 0:
        raise DataError("no sample of the batch has a target: their weights add up to 0")
    sink, every = plan.sink, range(plan.microbatches)
    by_module = {
        sink: share_samples(
            samples,
            num_microbatches=plan.microbatches,
            num_replicas=plan.modules[sink].layout.dp,
            cost=_cost(plan, sink),
        )
    }
    for boundary in plan.boundaries:
        by_module[boundary.producer] = share_items(
            by_module[sink],
            boundary.producer,
            num_replicas=plan.modules[boundary.producer].layout.dp,
            allowed=_replicas_with_work(plan, boundary),
            cost=_cost(plan, boundary.producer),
        )
    shares = {(module, m): replicas[m] for module, replicas in by_module.items() for m in every}
    crossings = {(b.name, m): _cross(plan, b, shares, m) for b in plan.boundaries for m in every}
    return StepPlan(divisor, shares, crossings, step_program(plan, is_training=is_training))


@cache
def step_program(plan: Plan, *, is_training: bool = True) -> Program:
    """The lowered and checked program of a plan's steps."""
    topology, _ = make_topology(plan)
    generate = training_program if is_training else evaluation_program
    program = lower_transfers(
        generate(
            topology,
            sink=plan.sink,
            pipeline=plan.schedule.pipeline,
            encoder=plan.schedule.encoder,
            num_microbatches=plan.microbatches,
        )
    )
    if is_training:
        trained = frozenset(name for name, module in plan.modules.items() if not module.frozen)
        program = lower_gradient_reduction(program, trained=trained)
    validate(program)
    return program


def _check_sample(plan: Plan, sample: Sample) -> None:
    end = 0
    producers = {b.producer for b in plan.boundaries}
    for placeholder in sample.placeholders:
        item = placeholder.item
        where = f"sample {sample.index}: item {item.key} of module {item.module}"
        if item.module not in producers:
            raise DataError(f"{where}: the plan has no boundary from that module; use one of {sorted(producers)}")
        if item.num_rows < 1 or item.num_inputs < 1:
            raise DataError(f"{where}: {item.num_inputs} inputs and {item.num_rows} rows; both must be at least 1")
        if placeholder.start < end or placeholder.start + item.num_rows > sample.num_tokens:
            raise DataError(
                f"{where}: its {item.num_rows} rows at {placeholder.start} overlap another placeholder "
                f"or end after the sample's {sample.num_tokens} tokens"
            )
        end = placeholder.start + item.num_rows


def _check_keys(samples: Sequence[Sample]) -> None:
    """Equal keys are the same item, so they have the same sizes."""
    known: dict[tuple[str, int], Item] = {}
    for sample in samples:
        for item in (placeholder.item for placeholder in sample.placeholders):
            if known.setdefault((item.module, item.key), item) != item:
                raise DataError(
                    f"sample {sample.index}: item {item.key} of module {item.module} has {item.num_inputs} inputs and "
                    f"{item.num_rows} rows, but was described otherwise by another sample; give it a key of its own"
                )


def _replicas_with_work(plan: Plan, boundary: BoundaryPlan) -> list[int]:
    """The producer's replicas that the placement policy gives items to."""
    topology, lanes = make_topology(plan)
    allowed = encoder_lanes(topology, topology.edge(boundary.name), policy=plan.schedule.encoder)
    ranks = {rank for lane in allowed for rank in lanes[lane]}
    grid = plan.grids[boundary.producer]
    return [dp for dp in range(grid.layout.dp) if ranks & set(grid.replica(dp, grid.layout.pp - 1))]


def _cost(plan: Plan, module: str) -> Cost:
    """Work of one sequence, in units of attention's cost per pair of tokens: a layer's matrices cost 6 hidden."""
    linear = 6 * plan.hidden(module)
    return lambda num_tokens: attention_cost(num_tokens, quadratic=1, linear=linear)


def _cross(
    plan: Plan, boundary: BoundaryPlan, shares: Mapping[tuple[str, int], tuple[Share, ...]], microbatch: int
) -> Crossing:
    source, sink = plan.grids[boundary.producer], plan.grids[boundary.consumer]
    return cross(
        Side(boundary.producer, source, plan.pipeline_rank(boundary.producer, source.layout.num_stages - 1)),
        shares[boundary.producer, microbatch],
        Side(boundary.consumer, sink, plan.pipeline_rank(boundary.consumer, boundary.stage)),
        shares[boundary.consumer, microbatch],
        has_backward=plan.has_backward(boundary.producer),
    )
