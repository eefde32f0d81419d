"""``fill``: encoder forwards and backwards go into the LLM's bubbles; the search is csrc/core/placement.h.

The LLM keeps its order, unless the state that may be in flight is short: then microbatches are let into its pipeline
later (csrc/core/admission.h), by as many limits as are worth a try, and the best program is kept. The
i-th microbatch of the program is whatever microbatch the caller makes the i-th: ``light_ends`` says which.

Source: Optimus (arXiv 2408.03505), whose bubbles are filled one lane at a time, and forwards as late as needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from hetsched import _core
from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.encoder.bare import bare_program
from hetsched.schedule.encoder.credits import Credit, held_state, state_credits
from hetsched.schedule.encoder.lanes import require_single_lanes
from hetsched.schedule.encoder.loads import (
    EncoderLoads,
    ItemCost,
    PlacedShare,
    PlacementOptions,
    default_budget,
    share_durations,
)
from hetsched.schedule.table import Pattern

Timed = list[tuple[Action, int]]
"""A lane's actions and their durations."""


@dataclass(frozen=True)
class Filled:
    """The lanes with one encoder's actions; see ``Placement`` for the rest."""

    lanes: list[Timed]
    shares: dict[int, tuple[PlacedShare, ...]]
    durations_ns: dict[Pattern, int]
    recomputed: frozenset[int]
    makespan_ns: int
    credits: tuple[Credit, ...]
    num_evaluations: int


@dataclass(frozen=True)
class _Task:
    """What is to be placed; see ``fill``."""

    topology: Topology
    edge: Edge
    loads: EncoderLoads
    options: PlacementOptions
    credits: tuple[Credit, ...]

    @property
    def encoder(self) -> ModuleOnLanes:
        return self.topology.module(self.edge.producer)

    @property
    def items(self) -> Sequence[Sequence[ItemCost]]:
        return self.loads.items[self.edge.producer]

    @property
    def edge_number(self) -> int:
        return self.topology.edges.index(self.edge)


def fill(
    topology: Topology,
    edge: Edge,
    lanes: Sequence[Timed],
    loads: EncoderLoads,
    options: PlacementOptions,
    *,
    credits: tuple[Credit, ...] = (),
) -> Filled:
    """The lanes with the encoder's actions in their bubbles.

    Args:
        topology: the module graph on lanes.
        edge: from the encoder.
        lanes: for each lane the actions of the LLM, and of encoders placed before, with their durations.
        loads, options: see their types.
        credits: of encoders placed before, whose actions wait for them.

    Raises:
        ScheduleError: the encoder has several stages, or a replica of several lanes.
    """
    task = _Task(topology, edge, loads, options, credits)
    encoder = task.encoder
    require_single_lanes(encoder, policy="fill")
    if options.in_flight is not None and options.in_flight < 1:
        raise ScheduleError(f"in_flight={options.in_flight}: an encoder's forward needs state of one microbatch")
    variants = [list(map(list, lanes))]
    if options.in_flight is not None and encoder.has_backward:
        variants = _variants(task, lanes, options.in_flight)
    budget = options.budget or default_budget(sum(map(len, lanes)))
    best: Filled | None = None
    num_evaluations = 0
    for variant in variants:
        found = _search(task, variant, max(1, budget // len(variants)))
        num_evaluations += found.num_evaluations
        if best is None or found.makespan_ns < best.makespan_ns:
            best = found
    assert best is not None
    return replace(best, credits=tuple(_credits(task, best)), num_evaluations=num_evaluations)


def light_ends(costs: Sequence[int], *, depth: int) -> tuple[int, ...]:
    """The order of microbatches that leaves the least encoder work outside the bubbles.

    Args:
        costs: encoder work of each microbatch, 0 for one of text only.
        depth: lanes of the pipeline; ``depth - 1`` microbatches are in its cooldown.

    Returns:
        For each position of the program the microbatch that belongs there: the lightest first, the next lightest
        last (they are the cooldown's), the rest by cost. Source: DistTrain (arXiv 2408.04275), section 5.2.
    """
    by_cost = sorted(range(len(costs)), key=lambda m: (costs[m], m))
    num_last = min(max(depth - 1, 0), max(len(by_cost) - 1, 0))
    first, last, middle = by_cost[:1], by_cost[1 : 1 + num_last], by_cost[1 + num_last :]
    return tuple(first + middle + last[::-1])


def _variants(task: _Task, lanes: Sequence[Timed], limit: int) -> list[list[Timed]]:
    """The LLM's orders that are worth a try: its own, and those with fewer microbatches in its pipeline."""
    edge, items = task.edge, task.items
    depth = _depth(edge, lanes[task.topology.module(edge.consumer).lanes(edge.stage)[0]])
    variants = [list(map(list, lanes))] if limit >= depth or task.options.recompute else []
    if limit >= 2 * depth:
        return variants
    single = [_without_pairs(lane, number, task.loads) for number, lane in enumerate(lanes)]
    every = [pair for lane in single for pair in lane]
    ends = list(accumulate(map(len, single), initial=0))
    bare, durations = _bare(task, single)
    # Between a microbatch's gradient and the next one's rows comes, at least, one's backward and the other's forward.
    latency = sum(item.forward_ns + item.backward_ns for of_microbatch in items for item in of_microbatch) // len(items)
    limits = {min(limit, depth), min(limit, depth - 1), 7 * limit // 8, 3 * limit // 4}
    for most in sorted((n for n in limits if n >= 1), reverse=True):
        order = bare.limit_in_flight(durations, task.edge_number, most, latency)
        variants.append([[every[i] for i in order[a:b]] for a, b in pairwise(ends)])
    return variants


def _depth(edge: Edge, lane: Timed) -> int:
    """The most microbatches between their forward and their gradient at the stage that the edge enters."""
    live = depth = 0
    for action, _ in lane:
        for part in action.flat():
            if part.module == edge.consumer and part.stage == edge.stage:
                live += {Kind.F: 1, Kind.B: -1, Kind.I: -1}.get(part.kind, 0)
                depth = max(depth, live)
    return depth


def _without_pairs(lane: Timed, number: int, loads: EncoderLoads) -> Timed:
    """Fused pairs as two actions: one of them may have to wait for the other's end."""
    result: Timed = []
    for action, duration in lane:
        parts = action.parts
        result += [(part, loads.duration_ns(part, number)) for part in parts] if parts else [(action, duration)]
    return result


def _bare(task: _Task, lanes: Sequence[Timed]) -> tuple[_core.BareProgram, NDArray[np.int64]]:
    actions = ([action for action, _ in lane] for lane in lanes)
    bare = bare_program(task.topology, actions, num_microbatches=len(task.items), credits=task.credits)
    durations = np.fromiter((duration for lane in lanes for _, duration in lane), np.int64)
    return bare, durations


def _search(task: _Task, lanes: list[Timed], budget: int) -> Filled:
    encoder, items, options = task.encoder, task.items, task.options
    units = [list(of_microbatch) if options.split_items else _whole(of_microbatch) for of_microbatch in items]
    work = _core.EncoderWork(
        edge=task.edge_number,
        lanes=list(encoder.lanes(0)),
        item_begin=list(accumulate(map(len, units), initial=0)),
        costs=([u.forward_ns for of in units for u in of], [u.backward_ns for of in units for u in of]),
        has_backward=encoder.has_backward,
        state=(options.in_flight or 0, options.recompute and options.in_flight is not None),
    )
    bare, durations = _bare(task, lanes)
    placed, again, makespan, _, num_evaluations = bare.place_encoder(durations, work, budget)
    recomputed = frozenset(again)
    found: dict[int, list[PlacedShare]] = {}
    for lane, _, is_forward, m, first, count in placed:
        if is_forward:
            share = PlacedShare(lane, first, count) if options.split_items else PlacedShare(lane, 0, len(items[m]))
            found.setdefault(m, []).append(share)
    shares = {m: tuple(sorted(of_lanes)) for m, of_lanes in found.items()}
    costs = share_durations(encoder.name, shares, task.loads, recomputed)
    filled = _inserted(lanes, placed, encoder.name, costs)
    return Filled(filled, shares, costs, recomputed, makespan, (), num_evaluations)


def _credits(task: _Task, found: Filled) -> list[Credit]:
    """What keeps the encoder within its limit whatever the timing, from the times of the placement."""
    in_flight, encoder = task.options.in_flight, task.encoder
    if in_flight is None or not encoder.has_backward:
        return []
    bare, durations = _bare(task, found.lanes)
    timed = ((lane, action, duration) for lane, actions in enumerate(found.lanes) for action, duration in actions)
    starts = bare.earliest_starts(durations, task.edge_number)
    ran = ((lane, action, at, at + duration) for (lane, action, duration), at in zip(timed, starts, strict=True))
    return state_credits(held_state(ran, encoder.name, recomputed=found.recomputed), encoder.name, in_flight=in_flight)


def _whole(items: Sequence[ItemCost]) -> list[ItemCost]:
    """A microbatch's items as one."""
    if not items:
        return []
    return [ItemCost(sum(item.forward_ns for item in items), sum(item.backward_ns for item in items))]


def _inserted(
    lanes: Sequence[Timed], placed: Sequence[_core.PlacedTuple], encoder: str, costs: dict[Pattern, int]
) -> list[Timed]:
    result: list[Timed] = [[] for _ in lanes]
    taken = [0] * len(lanes)
    for lane, position, is_forward, m, _, _ in placed:
        result[lane] += lanes[lane][taken[lane] : position]
        taken[lane] = position
        kind = Kind.F if is_forward else Kind.B
        result[lane].append((act(encoder, 0, kind, m), costs[Pattern(kind, encoder, 0, m, lane)]))
    for lane, actions in enumerate(lanes):
        result[lane] += actions[taken[lane] :]
    return result
