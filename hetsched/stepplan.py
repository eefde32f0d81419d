"""The plan of one step: packing, assignment, routes and program, from the plan and the batch's metadata.

Pure integers: every rank computes the same step plan without communication.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hetsched.batch import Item, Sample
from hetsched.errors import DataError
from hetsched.estimate import estimate_items, estimate_loads
from hetsched.graph import make_topology, replicas_on_lanes
from hetsched.layout.assign import attention_cost
from hetsched.layout.crossing import Crossing, Side, cross
from hetsched.layout.dispatch import plan_tokens
from hetsched.layout.held import Held
from hetsched.layout.packing import share_within
from hetsched.layout.shares import Cost, Share, items_of, share_items, share_samples
from hetsched.plan import BoundaryPlan, Plan
from hetsched.schedule.encoder import Placement, encoder_lanes, light_ends
from hetsched.schedule.encoder.credits import Signals, signals_of
from hetsched.schedule.program import Program
from hetsched.stepprogram import depends_on_batch, place_step, typical_placement


@dataclass(frozen=True)
class StepPlan:
    """What every rank does with one batch.

    Args:
        divisor: the weight of the global batch, which divides the loss.
        shares: ``(module, microbatch)`` -> for each replica (dp coordinate) its share, and where its rows lie if it has
            several context-parallel ranks.
        crossings: ``(edge name, microbatch)`` -> who copies which rows to whom.
        program: lowered and checked.
        recomputed: for each encoder the microbatches that keep only their output until their backward.
        signals: by which encoders keep to their limit of microbatches in flight.
    """

    divisor: int
    shares: Mapping[tuple[str, int], tuple[Held, ...]]
    crossings: Mapping[tuple[str, int], Crossing]
    program: Program
    recomputed: Mapping[str, frozenset[int]] = field(default_factory=dict)
    signals: Signals = field(default_factory=Signals)

    @cached_property
    def digest(self) -> int:
        """Below 2**63; equal on two ranks that will do the same."""
        sha = hashlib.sha256(repr((self.divisor, self.shares, self.recomputed, self.signals)).encode())
        for lane in self.program.lanes:
            sha.update(" ".join(map(str, lane)).encode())
        for crossing in self.crossings.values():
            sha.update(crossing.forward.tobytes() + crossing.backward.tobytes())
        return int.from_bytes(sha.digest()[:8], "little") >> 1


def plan_step(plan: Plan, samples: Sequence[Sample], *, is_training: bool = True) -> StepPlan:
    """The step plan of a batch.

    Args:
        plan: the job's plan.
        samples: metadata of the global batch, equal on every rank.
        is_training: False for a forward-only step.

    Raises:
        DataError: a sample whose placeholders do not fit it, or which is longer than the plan's capacity; the message
            names it. Or samples that fill more packed sequences than a step has.
    """
    for sample in samples:
        _check_sample(plan, sample)
    _check_keys(samples)
    divisor = sum(sample.weight for sample in samples)
    if divisor <= 0:
        raise DataError("no sample of the batch has a target: their weights add up to 0")
    of_samples = _share_samples(plan, samples)
    items = {b.producer: items_of(of_samples, b.producer) for b in plan.boundaries}
    if depends_on_batch(plan):
        order = _light_ends(plan, items)
        of_samples = [of_samples[m] for m in order]
        items = {encoder: [every[m] for m in order] for encoder, every in items.items()}
        loads = estimate_loads(plan, of_samples, items)
        placement = place_step(plan, loads, is_training=is_training)
    else:
        placement = typical_placement(plan, is_training=is_training)
    signals = signals_of(placement.program, placement.credits) if is_training else Signals()
    by_module = {plan.sink: of_samples}
    for boundary in plan.boundaries:
        encoder = boundary.producer
        by_module[encoder] = share_items(
            [list(_groups(plan, boundary, of, placement, m)) for m, of in enumerate(items[encoder])],
            num_replicas=plan.modules[encoder].layout.dp,
            cost=_cost(plan, encoder),
        )
    every = range(plan.microbatches)
    shares = {
        (module, m): tuple(_hold(plan, module, share) for share in replicas[m])
        for module, replicas in by_module.items()
        for m in every
    }
    crossings = {(b.name, m): _cross(plan, b, shares, m) for b in plan.boundaries for m in every}
    return StepPlan(divisor, shares, crossings, placement.program, placement.recomputed, signals)


def _hold(plan: Plan, module: str, share: Share) -> Held:
    """A replica's share, cut over its context-parallel ranks."""
    cp = plan.modules[module].layout.cp
    if cp == 1:
        return Held(share)
    quadratic, linear = _work(plan, module)
    cut = plan.modules[module].shortest_cut
    return Held(share, plan_tokens(share.cu_seqlens, cp=cp, quadratic=quadratic, linear=linear, shortest_cut=cut))


def _share_samples(plan: Plan, samples: Sequence[Sample]) -> list[tuple[Share, ...]]:
    """For each microbatch the packed sequences of the sink's replicas."""
    replicas, cost = plan.modules[plan.sink].layout.dp, _cost(plan, plan.sink)
    if plan.capacity is None:
        return share_samples(samples, num_microbatches=plan.microbatches, num_replicas=replicas, cost=cost)
    return share_within(
        samples, capacity=plan.capacity, num_microbatches=plan.microbatches, num_replicas=replicas, cost=cost
    )


def _light_ends(plan: Plan, items: Mapping[str, Sequence[Sequence[Item]]]) -> tuple[int, ...]:
    """The order of microbatches that leaves the least encoder work outside the bubbles."""
    costs = [estimate_items(plan, encoder, every) for encoder, every in items.items()]
    of_microbatch = [sum(sum(map(sum, of[m])) for of in costs) for m in range(plan.microbatches)]
    return light_ends(of_microbatch, depth=plan.modules[plan.sink].layout.pp)


def _groups(
    plan: Plan, boundary: BoundaryPlan, items: Sequence[Item], placement: Placement, microbatch: int
) -> Iterator[tuple[Sequence[Item], Sequence[int]]]:
    """The items of a microbatch, with the producer's replicas that the placement lets choose among them."""
    replicas = replicas_on_lanes(plan, boundary.producer)
    if depends_on_batch(plan):
        for share in placement.shares.get((boundary.producer, microbatch), ()):
            yield items[share.first_item : share.first_item + share.num_items], replicas[share.lane]
    else:
        topology, _ = make_topology(plan)
        allowed = encoder_lanes(topology, topology.edge(boundary.name), policy=plan.schedule.encoder)
        yield items, sorted({replica for lane in allowed for replica in replicas[lane]})


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


def _cost(plan: Plan, module: str) -> Cost:
    """Work of one sequence of a module."""
    quadratic, linear = _work(plan, module)
    return lambda num_tokens: attention_cost(num_tokens, quadratic=quadratic, linear=linear)


def _work(plan: Plan, module: str) -> tuple[int, int]:
    """Work per pair of tokens and per token: attention's cost of a pair is the unit, a layer's matrices 6 hidden."""
    return 1, 6 * plan.hidden(module)


def _cross(
    plan: Plan, boundary: BoundaryPlan, shares: Mapping[tuple[str, int], tuple[Held, ...]], microbatch: int
) -> Crossing:
    source, sink = plan.grids[boundary.producer], plan.grids[boundary.consumer]
    return cross(
        Side(boundary.producer, source, plan.pipeline_rank(boundary.producer, source.layout.num_stages - 1)),
        shares[boundary.producer, microbatch],
        Side(boundary.consumer, sink, plan.pipeline_rank(boundary.consumer, boundary.stage)),
        shares[boundary.consumer, microbatch],
        has_backward=plan.has_backward(boundary.producer),
    )
