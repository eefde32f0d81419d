"""Encoder placement: a pass that adds the encoders' actions to the program of the module they feed.

One policy a file. ``encoder_lanes`` says which lanes a policy gives work to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, Topology
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder.bare import bare_program
from hetsched.schedule.encoder.credits import Credit
from hetsched.schedule.encoder.even import even_shares
from hetsched.schedule.encoder.fill import Timed, fill, light_ends
from hetsched.schedule.encoder.lanes import Lanes, encoder_lanes
from hetsched.schedule.encoder.loads import (
    EncoderLoads,
    ItemCost,
    PlacedShare,
    Placement,
    PlacementOptions,
    share_durations,
)
from hetsched.schedule.encoder.stage0 import stage0
from hetsched.schedule.encoder.three_phase import three_phase
from hetsched.schedule.encoder.window import insert_windows
from hetsched.schedule.program import Program
from hetsched.schedule.table import Pattern

__all__ = [
    "POLICIES",
    "EncoderLoads",
    "ItemCost",
    "PlacedShare",
    "Placement",
    "PlacementOptions",
    "encoder_lanes",
    "light_ends",
    "place_encoders",
]

_PLAIN: Mapping[str, Callable[[Topology, Edge, Lanes, int], None]] = MappingProxyType(
    {"three_phase": three_phase, "stage0": stage0}
)
POLICIES = (*_PLAIN, "window", "fill")


def place_encoders(
    topology: Topology,
    sink_lanes: Sequence[Sequence[Action]],
    *,
    num_microbatches: int,
    policy: str,
    loads: EncoderLoads | None = None,
    options: PlacementOptions | None = None,
) -> Placement:
    """The program of the whole module graph; equal on every rank for equal arguments.

    Args:
        topology: the module graph on lanes.
        sink_lanes: for each lane the compute actions of the module that computes the loss.
        num_microbatches: microbatches of the step.
        policy: a name in ``POLICIES``.
        loads: what the actions cost; needed by ``fill``. Without, every microbatch has an action on every lane that
            the policy gives work to; with it, only where there is a share.
        options: see its type; its defaults if left out.

    Raises:
        ScheduleError: ``fill`` without loads, or an encoder that the policy cannot place.
    """
    options = options or PlacementOptions()
    if policy == "fill":
        if loads is None:
            raise ScheduleError("encoder policy fill: it needs to know what actions cost; give loads")
        return _fill(topology, sink_lanes, num_microbatches, loads, options)
    lanes = [list(actions) for actions in sink_lanes]
    shares: dict[tuple[str, int], tuple[PlacedShare, ...]] = {}
    durations: dict[Pattern, int] = {}
    recomputed: dict[str, frozenset[int]] = {}
    for edge in topology.edges:
        has_backward = topology.module(edge.producer).has_backward
        again = frozenset(range(num_microbatches if options.recompute and has_backward else 0))
        recomputed[edge.producer] = again
        allowed = encoder_lanes(topology, edge, policy=policy)
        of_edge = _even_shares(edge, allowed, num_microbatches, loads, options)
        if policy == "window":
            rank = _ranks(topology, edge, lanes, num_microbatches)
            lanes = insert_windows(topology, edge, lanes, rank=rank, shares=of_edge, window=options.window)
        else:
            _PLAIN[policy](topology, edge, lanes, num_microbatches)
            if loads is not None:
                lanes = _with_shares(lanes, edge.producer, of_edge)
        if loads is not None:
            shares |= {(edge.producer, m): of_lanes for m, of_lanes in of_edge.items()}
            if policy == "window":
                durations |= _nothing(edge.producer, of_edge, allowed)
            durations |= share_durations(edge.producer, of_edge, loads, again)
    return Placement(_program(topology, num_microbatches, lanes), shares, durations, recomputed)


def _fill(
    topology: Topology,
    sink_lanes: Sequence[Sequence[Action]],
    num_microbatches: int,
    loads: EncoderLoads,
    options: PlacementOptions,
) -> Placement:
    lanes: list[Timed] = [
        [(action, loads.duration_ns(action, lane)) for action in actions] for lane, actions in enumerate(sink_lanes)
    ]
    shares: dict[tuple[str, int], tuple[PlacedShare, ...]] = {}
    durations: dict[Pattern, int] = {}
    recomputed: dict[str, frozenset[int]] = {}
    credits: tuple[Credit, ...] = ()
    num_evaluations = 0
    for edge in topology.edges:
        found = fill(topology, edge, lanes, loads, options, credits=credits)
        credits += found.credits
        lanes = found.lanes
        shares |= {(edge.producer, m): of_lanes for m, of_lanes in found.shares.items()}
        durations |= found.durations_ns
        recomputed[edge.producer] = found.recomputed
        num_evaluations += found.num_evaluations
    bare = [[action for action, _ in lane] for lane in lanes]
    program = _program(topology, num_microbatches, bare)
    return Placement(program, shares, durations, recomputed, credits, num_evaluations)


def _program(topology: Topology, num_microbatches: int, lanes: Sequence[Sequence[Action]]) -> Program:
    return Program(topology, num_microbatches, tuple(map(tuple, lanes)))


def _even_shares(
    edge: Edge,
    allowed: Sequence[int],
    num_microbatches: int,
    loads: EncoderLoads | None,
    options: PlacementOptions,
) -> dict[int, tuple[PlacedShare, ...]]:
    if loads is None:
        return {m: tuple(PlacedShare(lane, 0, 0) for lane in allowed) for m in range(num_microbatches)}
    return even_shares(loads.items[edge.producer], allowed, split_items=options.split_items)


def _with_shares(lanes: Lanes, encoder: str, shares: Mapping[int, tuple[PlacedShare, ...]]) -> Lanes:
    """The lanes without the actions of the encoder that have nothing to do there."""
    held = {(share.lane, m) for m, of_lanes in shares.items() for share in of_lanes}
    return [
        [action for action in actions if action.module != encoder or (lane, action.first) in held]
        for lane, actions in enumerate(lanes)
    ]


def _nothing(encoder: str, of_edge: Iterable[int], lanes: Sequence[int]) -> dict[Pattern, int]:
    """What a window's action costs on a lane without a share of one of its microbatches."""
    return {Pattern(kind, encoder, 0, m, lane): 0 for m in of_edge for lane in lanes for kind in (Kind.F, Kind.B)}


def _ranks(topology: Topology, edge: Edge, lanes: Lanes, num_microbatches: int) -> list[list[int]]:
    """For each action its place in an order of all lanes' actions in which they can be run."""
    bare = bare_program(topology, lanes, num_microbatches=num_microbatches)
    rank = [0] * sum(map(len, lanes))
    for place, action in enumerate(bare.order(topology.edges.index(edge))):
        rank[action] = place
    flat = iter(rank)
    return [[next(flat) for _ in actions] for actions in lanes]
