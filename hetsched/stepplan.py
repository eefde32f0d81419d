"""The plan of one step: packing, assignment, routes and program, from the plan and the batch's metadata.

Pure integers: every rank computes the same step plan without communication.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hetsched.batch import Item, Placeholder, Sample
from hetsched.check.validate import validate
from hetsched.errors import DataError
from hetsched.layout.assign import assign_longest_first, attention_cost
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology, find_gangs, find_lanes
from hetsched.layout.routes import Segment, backward_route, forward_route
from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.plan import BoundaryPlan, Plan
from hetsched.schedule.encoder import encoder_lanes
from hetsched.schedule.program import Program
from hetsched.schedule.registry import evaluation_program, training_program


@dataclass(frozen=True)
class Share:
    """One replica's part of one microbatch of one module: sequences laid out one after the other.

    Args:
        members: the samples, or the items, in order.
        lengths: tokens of each as the module sees them.
        num_rows: rows that the module's last stage produces for them.
    """

    members: tuple[Sample | Item, ...]
    lengths: tuple[int, ...]
    num_rows: int

    @property
    def cu_seqlens(self) -> tuple[int, ...]:
        """Boundaries of the sequences, from 0."""
        return tuple(itertools.accumulate(self.lengths, initial=0))

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class BoundaryStep:
    """One microbatch's crossing of a boundary.

    Args:
        forward, backward: who copies which rows to whom; the backward adds up what arrives.
        index: for each consumer replica, the rows of its packed sequence that arriving rows fill, in order.
        produced: for each producer replica, the rows that it produces.
    """

    forward: tuple[Segment, ...]
    backward: tuple[Segment, ...]
    index: tuple[tuple[int, ...], ...]
    produced: tuple[int, ...]


@dataclass(frozen=True)
class StepPlan:
    """What every rank does with one batch.

    Args:
        divisor: the weight of the global batch, which divides the loss.
        shares: ``(module, microbatch)`` -> for each replica (dp coordinate) its share.
        boundaries: ``(edge name, microbatch)`` -> its crossing.
        program: lowered and checked.
    """

    divisor: int
    shares: Mapping[tuple[str, int], tuple[Share, ...]]
    boundaries: Mapping[tuple[str, int], BoundaryStep]
    program: Program


def make_topology(plan: Plan) -> tuple[Topology, tuple[tuple[int, ...], ...]]:
    """The module graph on lanes, and the ranks of each lane."""
    lanes = find_lanes(plan.grids)
    lane_of = {rank: lane for lane, ranks in enumerate(lanes) for rank in ranks}
    modules = tuple(
        ModuleOnLanes(
            name=name,
            stages=tuple(find_gangs(grid, pp=stage, lane_of=lane_of) for stage in range(grid.layout.num_stages)),
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
    divisor = sum(sample.weight for sample in samples)
    if divisor <= 0:
        raise DataError("no sample of the batch has a target: their weights add up to 0")
    shares = {(plan.sink, m): replicas for m, replicas in enumerate(_share_samples(plan, samples))}
    for boundary in plan.boundaries:
        per_microbatch = _share_items(plan, boundary, [shares[plan.sink, m] for m in range(plan.microbatches)])
        shares |= {(boundary.producer, m): replicas for m, replicas in enumerate(per_microbatch)}
    boundaries = {
        (f"{b.producer}->{b.consumer}", m): _cross(plan, b, shares[b.producer, m], shares[b.consumer, m])
        for b in plan.boundaries
        for m in range(plan.microbatches)
    }
    return StepPlan(divisor, shares, boundaries, _program(plan, is_training))


class _PlanKey:
    """Compares plans by digest, so that programs can be remembered per plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __hash__(self) -> int:
        return hash(self.plan.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PlanKey) and other.plan.digest == self.plan.digest


def _program(plan: Plan, is_training: bool) -> Program:
    return _lowered(_PlanKey(plan), is_training)


@lru_cache(maxsize=64)
def _lowered(key: _PlanKey, is_training: bool) -> Program:
    plan = key.plan
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


def _share_samples(plan: Plan, samples: Sequence[Sample]) -> list[tuple[Share, ...]]:
    """For each microbatch the shares of the sink's replicas, longest samples first to the lightest bin."""
    num_replicas = plan.modules[plan.sink].layout.dp
    costs = [_cost(plan, plan.sink, sample.num_tokens) for sample in samples]
    bins = assign_longest_first(costs, num_bins=plan.microbatches * num_replicas)
    members: list[list[Sample]] = [[] for _ in range(plan.microbatches * num_replicas)]
    for sample, where in zip(samples, bins, strict=True):
        members[where].append(sample)
    shares = [
        Share(tuple(ms), tuple(s.num_tokens for s in ms), sum(s.num_tokens for s in ms)) for ms in members
    ]
    return [tuple(shares[m * num_replicas : (m + 1) * num_replicas]) for m in range(plan.microbatches)]


def _share_items(plan: Plan, boundary: BoundaryPlan, sink: Sequence[tuple[Share, ...]]) -> list[tuple[Share, ...]]:
    """For each microbatch the shares of an encoder's replicas; each item once per microbatch."""
    module = boundary.producer
    num_replicas = plan.modules[module].layout.dp
    allowed = _replicas_with_work(plan, boundary)
    loads = [0] * len(allowed)
    result = []
    for shares in sink:
        items = list({p.item.key: p.item for p in _placeholders(shares, module)}.values())
        costs = [_cost(plan, module, item.num_inputs) for item in items]
        bins = assign_longest_first(costs, num_bins=len(allowed), loads=loads)
        members: list[list[Item]] = [[] for _ in range(num_replicas)]
        for item, cost, where in zip(items, costs, bins, strict=True):
            members[allowed[where]].append(item)
            loads[where] += cost
        result.append(
            tuple(Share(tuple(ms), tuple(i.num_inputs for i in ms), sum(i.num_rows for i in ms)) for ms in members)
        )
    return result


def _replicas_with_work(plan: Plan, boundary: BoundaryPlan) -> list[int]:
    """The producer's replicas that the placement policy gives items to."""
    topology, lanes = make_topology(plan)
    edge = topology.edge(f"{boundary.producer}->{boundary.consumer}")
    ranks = {r for lane in encoder_lanes(topology, edge, policy=plan.schedule.encoder) for r in lanes[lane]}
    grid = plan.grids[boundary.producer]
    return [dp for dp in range(grid.layout.dp) if ranks & set(grid.replica(dp, grid.layout.pp - 1))]


def _placeholders(shares: Iterable[Share], module: str) -> Iterable[Placeholder]:
    for share in shares:
        for sample in share.members:
            assert isinstance(sample, Sample)
            yield from (p for p in sample.placeholders if p.item.module == module)


def _cost(plan: Plan, module: str, num_tokens: int) -> int:
    """Work of one sequence, in units of attention's cost per pair of tokens: a layer's matrices cost 6 hidden."""
    return attention_cost(num_tokens, quadratic=1, linear=6 * plan.hidden(module))


def _cross(
    plan: Plan, boundary: BoundaryPlan, producers: tuple[Share, ...], consumers: tuple[Share, ...]
) -> BoundaryStep:
    """Routes of one microbatch over one boundary."""
    source, sink = plan.grids[boundary.producer], plan.grids[boundary.consumer]
    produced_at: dict[int, int] = {}
    producer_runs, start = [], 0
    for dp, share in enumerate(producers):
        producer_runs.append((source.rank(dp=dp, pp=source.layout.pp - 1), 0, start, share.num_rows))
        for item in share.members:
            assert isinstance(item, Item)
            produced_at[item.key] = start
            start += item.num_rows
    uses, consumer_runs, index, use = [], [], [], 0
    for dp, share in enumerate(consumers):
        first_use, rows = use, []
        for sample, row in zip(share.members, share.cu_seqlens, strict=False):
            for placeholder in _placeholders_of(sample, boundary.producer):
                count = placeholder.item.num_rows
                uses.append((use, produced_at[placeholder.item.key], count))
                rows.extend(range(row + placeholder.start, row + placeholder.start + count))
                use += count
        index.append(tuple(rows))
        consumer_runs.append((sink.rank(dp=dp, pp=boundary.stage), 0, first_use, use - first_use))
    producer_runs = [run for run in producer_runs if run[3]]
    consumer_runs = [run for run in consumer_runs if run[3]]
    backward = ()
    if plan.has_backward(boundary.producer):
        backward = backward_route(uses, producer_runs, consumer_runs, partial=False)
    forward = forward_route(uses, producer_runs, consumer_runs)
    return BoundaryStep(forward, backward, tuple(index), tuple(share.num_rows for share in producers))


def _placeholders_of(sample: Sample | Item, module: str) -> Iterable[Placeholder]:
    assert isinstance(sample, Sample)
    return (p for p in sample.placeholders if p.item.module == module)
