"""``window``: one encoder action for every few microbatches, each lane on its share of them.

A window's forward comes just before the LLM first needs it and its backward just after the last of its gradients, so
that the state of a few windows is held, however many microbatches there are. All lanes place it by one clock, that of
the LLM alone: one order of time for all cannot wait in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, Topology
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.encoder.lanes import require_single_lanes
from hetsched.schedule.encoder.loads import PlacedShare

Start = Sequence[Sequence[int]]
"""For each lane the time at which each of its actions starts."""


def insert_windows(
    topology: Topology,
    edge: Edge,
    lanes: Sequence[Sequence[Action]],
    *,
    rank: Start,
    shares: Mapping[int, tuple[PlacedShare, ...]],
    window: int,
) -> list[list[Action]]:
    """The lanes with the encoder's windows.

    Args:
        topology, edge: the module graph, and the edge from the encoder.
        lanes: what they do so far.
        rank: for each action its place in an order of all lanes' actions in which they can be run.
        shares: which lanes have a share of which microbatch.
        window: microbatches of one action.

    Raises:
        ScheduleError: the encoder has several stages, or a replica of several lanes.
    """
    encoder = topology.module(edge.producer)
    require_single_lanes(encoder, policy="window")
    if window < 1:
        raise ScheduleError(f"window={window}: use at least 1")
    needed, given = _uses(edge, lanes, rank)
    inserts: list[list[tuple[int, int, Action]]] = [[] for _ in lanes]
    for first in range(0, max(shares, default=-1) + 1, window):
        inside = [m for m in range(first, first + window) if shares.get(m)]
        if not inside:
            continue
        for lane in sorted({share.lane for m in inside for share in shares[m]}):
            forward = act(encoder.name, 0, Kind.F, inside[0], inside[-1])
            inserts[lane].append((min(needed[m] for m in inside), 0, forward))
            if encoder.has_backward:
                backward = act(encoder.name, 0, Kind.B, inside[0], inside[-1])
                inserts[lane].append((max(given[m] for m in inside), 2, backward))
    merged = []
    for actions, ranks, added in zip(lanes, rank, inserts, strict=True):
        keyed = [(at, 1, action) for at, action in zip(ranks, actions, strict=True)] + added
        merged.append([action for _, _, action in sorted(keyed, key=lambda entry: entry[:2])])
    return merged


def _uses(edge: Edge, lanes: Sequence[Sequence[Action]], rank: Start) -> tuple[dict[int, int], dict[int, int]]:
    """For each microbatch when the LLM first needs its rows, and when it last gives their gradient."""
    needed: dict[int, int] = {}
    given: dict[int, int] = {}
    for actions, ranks in zip(lanes, rank, strict=True):
        for action, at in zip(actions, ranks, strict=True):
            for part in action.flat():
                if part.module != edge.consumer or part.stage != edge.stage:
                    continue
                for m in part.microbatches:
                    if part.kind is Kind.F:
                        needed[m] = min(at, needed.get(m, at))
                    elif part.kind in (Kind.B, Kind.I):
                        given[m] = max(at, given.get(m, at))
    return needed, given
