"""Shares that give every lane as much to do, whatever the order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hetsched.layout.assign import assign_longest_first
from hetsched.schedule.encoder.loads import ItemCost, PlacedShare


def even_shares(
    items: Sequence[Sequence[ItemCost]], lanes: Sequence[int], *, split_items: bool
) -> dict[int, tuple[PlacedShare, ...]]:
    """The shares of each microbatch that has items.

    Args:
        items: of each microbatch.
        lanes: that may have a share.
        split_items: every lane gets as many of a microbatch's items; otherwise a microbatch goes to one lane whole,
            longest first to the lane with the least work.
    """
    if not split_items:
        costs = [sum(item.forward_ns + item.backward_ns for item in of_microbatch) for of_microbatch in items]
        bins = assign_longest_first(costs, num_bins=len(lanes))
        every = enumerate(zip(items, bins, strict=True))
        return {m: (PlacedShare(lanes[where], 0, len(of)),) for m, (of, where) in every if of}
    result = {}
    for m, of_microbatch in enumerate(items):
        ends = [i * len(of_microbatch) // len(lanes) for i in range(len(lanes) + 1)]
        shares = zip(lanes, pairwise(ends), strict=True)
        if of_microbatch:
            result[m] = tuple(PlacedShare(lane, a, b - a) for lane, (a, b) in shares if a < b)
    return result
