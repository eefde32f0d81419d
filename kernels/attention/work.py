"""Work tables: which tiles a kernel program visits, in which order, and who does what.

A *tile* is a run of rows of one document on the side that a program owns (queries in the forward and dq
kernels, keys in the dkv kernel). Its record says which tiles of the other side it meets. Tiles at the two ends of
that run may be partly hidden by the mask: they are visited first, so that the long loop has no mask. An *item* is a
(tile, head) pair. Items of the same document and head follow each other by about one wave of programs, so that they
find each other's keys in the L2 cache; inside a wave, and over the last few waves, the longest go first.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetsched.kernels.attention.ranges import KeyRanges, Span

# Columns of a tile record. A tile that meets `COUNT` tiles of the other side visits the `NEAR` masked ones from
# `START` on, then the `FAR` masked ones from the other end, then the rest.
ROW, NUM_ROWS, OTHER_ROW, NUM_OTHER, LOCAL, START, COUNT, NEAR, FAR, PAD_ROW = range(10)
NUM_COLUMNS = 10
PAD = 128
"""Queries of a document start at a multiple of this in padded row statistics."""
_TAIL_WAVES = 4
"""Waves at the end that are sorted together, so that programs finish at about the same time."""
_ITEM_OVERHEAD = 1.0
"""What starting and finishing an item costs, in tiles of the other side."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkTable:
    """What the programs of one kernel do.

    Args:
        tiles: int32 ``[num_tiles, NUM_COLUMNS]``.
        order: int32 ``[num_items]``, ``tile * num_heads + head``, in the order in which to start them.
        workers: int32 ``[num_workers, 1 + most_items]``, the same items dealt to persistent programs: how many, then
            which.
        is_complete: every row of the owning side lies in a tile with work, so that every output row is written.
    """

    tiles: NDArray[np.int32]
    order: NDArray[np.int32]
    workers: NDArray[np.int32]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows of a query tile and of a key tile."""

    queries: int
    keys: int


def query_major(ranges: KeyRanges, shape: TileShape, *, num_heads: int, num_workers: int = 1) -> WorkTable:
    """The table of kernels that own query tiles: forward and dq. Key tiles run downwards, the diagonal first.

    Args:
        ranges: what each query sees.
        shape: tile sizes of the kernel.
        num_heads: query heads.
        num_workers: programs that run at once; persistent ones are dealt the items.
    """
    tiles = [_query_tiles(span, ranges, shape, pad) for span, pad in zip(ranges.spans, pad_rows(ranges), strict=True)]
    return _table(tiles, ranges.num_query_rows, num_heads, num_workers)


def key_major(ranges: KeyRanges, shape: TileShape, *, num_heads: int, num_workers: int = 1) -> WorkTable:
    """The table of the dkv kernel, which owns key tiles. Query tiles run upwards; ``num_heads`` are key heads."""
    tiles = [_key_tiles(span, ranges, shape, pad) for span, pad in zip(ranges.spans, pad_rows(ranges), strict=True)]
    return _table(tiles, ranges.num_key_rows, num_heads, num_workers)


def pad_rows(ranges: KeyRanges) -> list[int]:
    """For each span its first row in padded row statistics."""
    starts, total = [], 0
    for span in ranges.spans:
        starts.append(total)
        total += -(-span.num_queries // PAD) * PAD
    return starts


def pad_blocks(ranges: KeyRanges) -> NDArray[np.int32]:
    """``[num_blocks, 3]``: first row, number of rows and first padded row of every run of up to PAD queries."""
    blocks = [np.zeros((0, 3), np.int64)]
    for span, pad in zip(ranges.spans, pad_rows(ranges), strict=True):
        first = np.arange(0, span.num_queries, PAD)
        num_rows = np.minimum(PAD, span.num_queries - first)
        blocks.append(np.stack([span.q_start + first, num_rows, pad + first], axis=1))
    return np.concatenate(blocks).astype(np.int32)


def num_padded_rows(ranges: KeyRanges) -> int:
    """Rows of padded row statistics."""
    return sum(-(-span.num_queries // PAD) * PAD for span in ranges.spans)


def _query_tiles(span: Span, ranges: KeyRanges, shape: TileShape, pad: int) -> NDArray[np.int64]:
    rows = slice(span.q_start, span.q_start + span.num_queries)
    lo, hi = ranges.lo[rows].astype(np.int64), ranges.hi[rows].astype(np.int64)
    first = np.arange(0, span.num_queries, shape.queries)
    last = np.minimum(first + shape.queries, span.num_queries) - 1
    low, high = _seen_runs(lo, hi, first, last)
    begin, end = low // shape.keys, -(-high // shape.keys)
    # a tile is free of the mask if every query of the tile sees all of it
    free_begin, free_end = -(-lo[last] // shape.keys), hi[first] // shape.keys
    tiles = _records(first, last, span.q_start, span.k_start, span.num_keys)
    _visits(tiles, begin, end, free_begin=free_begin, free_end=free_end, is_descending=True)
    tiles[:, PAD_ROW] = pad + first
    return tiles


def _seen_runs(
    lo: NDArray[np.int64], hi: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each run of rows the smallest interval that holds what its rows see; empty where they see nothing."""
    low, high = lo[first], hi[last]
    some = np.concatenate([[0], np.cumsum(hi > lo)])
    is_empty = some[last + 1] == some[first]
    return low, np.where(is_empty, low, high)


def _key_tiles(span: Span, ranges: KeyRanges, shape: TileShape, pad: int) -> NDArray[np.int64]:
    rows = slice(span.q_start, span.q_start + span.num_queries)
    lo, hi = ranges.lo[rows].astype(np.int64), ranges.hi[rows].astype(np.int64)
    first = np.arange(0, span.num_keys, shape.keys)
    last = np.minimum(first + shape.keys, span.num_keys) - 1
    # queries that see some key of the tile have hi > first and lo <= last, those that see all of a whole tile
    # lo <= first and hi >= first + keys
    begin, end = np.searchsorted(hi, first, side="right"), np.searchsorted(lo, last, side="right")
    whole_begin = np.searchsorted(hi, first + shape.keys, side="left")
    whole_end = np.searchsorted(lo, first, side="right")
    end = np.where(end > begin, end, begin)
    tiles = _records(first, last, span.k_start, span.q_start, span.num_queries)
    free_begin = -(-whole_begin // shape.queries)
    # the last query tile may be short: missing queries see nothing, and their statistics say so
    is_last = whole_end == span.num_queries
    free_end = np.where(is_last, -(-whole_end // shape.queries), whole_end // shape.queries)
    bounds = begin // shape.queries, -(-end // shape.queries)
    _visits(tiles, *bounds, free_begin=free_begin, free_end=free_end, is_descending=False)
    tiles[:, COUNT] = np.where(end > begin, tiles[:, COUNT], 0)
    tiles[:, PAD_ROW] = pad
    return tiles


def _records(
    first: NDArray[np.int64], last: NDArray[np.int64], own_start: int, other_start: int, num_other: int
) -> NDArray[np.int64]:
    tiles = np.zeros((len(first), NUM_COLUMNS), np.int64)
    tiles[:, ROW], tiles[:, NUM_ROWS], tiles[:, LOCAL] = own_start + first, last - first + 1, first
    tiles[:, OTHER_ROW], tiles[:, NUM_OTHER] = other_start, num_other
    return tiles


def _visits(
    tiles: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    *,
    free_begin: NDArray[np.int64],
    free_end: NDArray[np.int64],
    is_descending: bool,
) -> None:
    """Fill START, COUNT, NEAR and FAR for tiles ``[begin, end)`` of the other side; the free ones need no mask."""
    free_begin, free_end = np.clip(free_begin, begin, end), np.clip(free_end, begin, end)
    has_free = free_end > free_begin
    below = np.where(has_free, free_begin - begin, 0)
    above = np.where(has_free, end - free_end, end - begin)
    tiles[:, COUNT] = end - begin
    if is_descending:
        tiles[:, START], tiles[:, NEAR], tiles[:, FAR] = end - 1, above, below
    else:
        below, above = np.where(has_free, below, end - begin), np.where(has_free, above, 0)
        tiles[:, START], tiles[:, NEAR], tiles[:, FAR] = begin, below, above


def _table(per_span: list[NDArray[np.int64]], num_rows: int, num_heads: int, num_workers: int) -> WorkTable:
    tiles = np.concatenate([np.zeros((0, NUM_COLUMNS), np.int64), *per_span])
    document = np.repeat(np.arange(len(per_span)), [len(rows) for rows in per_span])
    order, cost = _order(tiles, document, num_heads, num_workers)
    covered = int(tiles[tiles[:, COUNT] > 0, NUM_ROWS].sum())
    return WorkTable(tiles.astype(np.int32), order, _deal(order, cost, num_workers), covered == num_rows)


def _order(
    tiles: NDArray[np.int64], document: NDArray[np.int64], num_heads: int, wave: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Items with work and their costs: longest documents first, in waves of whole (document, head) pairs."""
    busy = np.flatnonzero(tiles[:, COUNT] > 0)
    busy = busy[np.lexsort((document[busy], -tiles[busy, NUM_OTHER]))]
    if len(busy) == 0:
        return np.zeros(0, np.int32), np.zeros(0)
    first = np.flatnonzero(np.concatenate([[True], np.diff(document[busy]) != 0]))
    tiles_of = np.diff(np.append(first, len(busy)))
    place = np.repeat(np.arange(len(first)), tiles_of)
    head = np.arange(num_heads)[None, :]
    before = first[place][:, None] * num_heads + tiles_of[place][:, None] * head
    group = np.minimum(before // wave, max(0, len(busy) * num_heads // wave - _TAIL_WAVES))
    items = busy[:, None] * num_heads + head
    cost = np.broadcast_to(tiles[busy, COUNT][:, None] + _ITEM_OVERHEAD, items.shape)
    sequence = np.lexsort((items.ravel(), -cost.ravel(), group.ravel()))
    return items.ravel()[sequence].astype(np.int32), cost.ravel()[sequence]


def _deal(order: NDArray[np.int32], cost: NDArray[np.float64], num_workers: int) -> NDArray[np.int32]:
    """Deal the items, in order, each to the worker that is free first."""
    heap = [(0.0, worker) for worker in range(num_workers)]
    hands: list[list[int]] = [[] for _ in range(num_workers)]
    for item, price in zip(order.tolist(), cost.tolist(), strict=True):
        time, worker = heap[0]
        hands[worker].append(item)
        heapq.heapreplace(heap, (time + price, worker))
    workers = np.zeros((num_workers, 1 + max(map(len, hands))), np.int32)
    for worker, hand in enumerate(hands):
        workers[worker, : 1 + len(hand)] = [len(hand), *hand]
    return workers
