"""Crossings that are wrong on purpose; None where a crossing cannot be wrong in that way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hetsched.layout.crossing import Crossing, Side
from tests.plan.crossing_oracle import Pair

IntArray = NDArray[np.int64]
Mutant = Callable[[IntArray, Side], IntArray | None]
"""From a route and the side that sends to a wrong route."""


def _without(route: IntArray, segment: int) -> IntArray:
    return np.delete(route, segment, axis=0)


def _changed(route: IntArray, segment: int, **fields: int) -> IntArray:
    changed = route.copy()
    for name, value in fields.items():
        changed[segment, ("src_rank", "src_row", "dst_rank", "dst_row").index(name)] = value
    return changed


def a_dropped_segment(route: IntArray, sender: Side) -> IntArray | None:
    return _without(route, len(route) // 2) if len(route) else None


def a_doubled_segment(route: IntArray, sender: Side) -> IntArray | None:
    return np.concatenate([route, route[len(route) // 2 :][:1]]) if len(route) else None


def an_off_by_one_source(route: IntArray, sender: Side) -> IntArray | None:
    late = np.flatnonzero(route[:, 1])
    return _changed(route, late[0], src_row=route[late[0], 1] - 1) if late.size else None


def an_off_by_one_target(route: IntArray, sender: Side) -> IntArray | None:
    late = np.flatnonzero(route[:, 3])
    return _changed(route, late[0], dst_row=route[late[0], 3] - 1) if late.size else None


def a_missing_sum(route: IntArray, sender: Side) -> IntArray | None:
    """Of two addends that begin at the same row only the last is left."""
    first_of: dict[tuple[int, int], int] = {}
    for segment, (_, _, rank, row, _) in enumerate(route.tolist()):
        if (rank, row) in first_of:
            return _without(route, first_of[rank, row])
        first_of[rank, row] = segment
    return None


def a_wrong_replica(route: IntArray, sender: Side) -> IntArray | None:
    """Another replica's rank sends, from the same local rows."""
    grid = sender.grid
    if grid.layout.dp == 1 or not len(route):
        return None
    at = grid.coordinates(int(route[0, 0]))
    other = grid.rank(tp=at.tp, cp=at.cp, dp=(at.dp + 1) % grid.layout.dp, pp=at.pp)
    return _changed(route, 0, src_rank=other)


ROUTE_MUTANTS: tuple[Mutant, ...] = (
    a_dropped_segment,
    a_doubled_segment,
    an_off_by_one_source,
    an_off_by_one_target,
    a_missing_sum,
    a_wrong_replica,
)


def mutated(pair: Pair, crossing: Crossing, mutant: Mutant, *, is_forward: bool) -> Crossing | None:
    """The crossing with a wrong route in one direction."""
    producer, consumer = pair.sides
    if is_forward:
        route = mutant(crossing.forward, producer)
        return None if route is None else replace(crossing, forward=route)
    route = mutant(crossing.backward, consumer)
    return None if route is None else replace(crossing, backward=route)


def a_needless_copy(pair: Pair, crossing: Crossing) -> Crossing | None:
    """A row comes from another tp rank than the one that needs it and has it."""
    producer, _ = pair.sides
    grid, route = producer.grid, crossing.forward
    local = np.flatnonzero(route[:, 0] == route[:, 2])
    if producer.layout.is_sequence_parallel or grid.layout.tp == 1 or not local.size:
        return None
    at = grid.coordinates(int(route[local[0], 0]))
    other = grid.rank(tp=(at.tp + 1) % grid.layout.tp, cp=at.cp, dp=at.dp, pp=at.pp)
    return replace(crossing, forward=_changed(route, local[0], src_rank=other))


def gradients_mistaken(pair: Pair, crossing: Crossing) -> Crossing | None:
    """Addends taken for copies, or copies for addends; of no effect where nobody has more than one."""
    layout = replace(pair.consumer.tokens, has_partial_gradients=not pair.consumer.tokens.has_partial_gradients)
    route = replace(pair, consumer=replace(pair.consumer, tokens=layout)).cross().backward
    return None if np.array_equal(route, crossing.backward) else replace(crossing, backward=route)


def wrong_local_rows(pair: Pair, crossing: Crossing) -> Crossing | None:
    """Rows are said to fill the local rows behind those that they fill."""
    if not len(crossing.forward):
        return None
    return replace(crossing, index={rank: runs + np.array([1, 0]) for rank, runs in crossing.index.items()})


CROSSING_MUTANTS: dict[Callable[[Pair, Crossing], Crossing | None], str] = {
    a_needless_copy: "bytes",
    gradients_mistaken: "gradients",
    wrong_local_rows: "local rows",
}
"""With what is certain to be wrong."""
