"""Which keys each query may see: one interval of key rows per query row, document by document.

Causality, a sliding window, bidirectional blocks (an image inside a causal sequence) and any ascending
shard of a sequence all give each query one contiguous interval of key rows, and the ends of these intervals never move
back from one row to the next. The kernels and the work tables know nothing else of masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
MaskKind = Literal["full", "causal", "ranges"]


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one document: queries ``[q_start, q_start + num_queries)`` see keys from ``k_start`` on."""

    q_start: int
    num_queries: int
    k_start: int
    num_keys: int


@dataclass(frozen=True, slots=True, eq=False)
class KeyRanges:
    """For every query row the keys it sees, ``[lo, hi)`` counted from its document's first key row.

    Args:
        spans: one per document, in order, on disjoint rows of the packed tensors.
        lo, hi: int32 ``[num_query_rows]``, nondecreasing within a span and ``lo <= hi``.
        kind: ``full`` and ``causal`` promise that the intervals are the whole document and ``[0, row]``,
            so that kernels need not read them.
        num_query_rows, num_key_rows: first dimensions of the packed tensors; rows outside every span
            have no keys, and no query sees them.
    """

    spans: tuple[Span, ...]
    lo: NDArray[np.int32]
    hi: NDArray[np.int32]
    kind: MaskKind
    num_query_rows: int
    num_key_rows: int


@dataclass(frozen=True, slots=True)
class Block:
    """Positions ``[start, stop)`` of document ``document`` that all see each other, e.g. an image's rows."""

    document: int
    start: int
    stop: int


def packed_ranges(
    lengths: Sequence[int], *, is_causal: bool = True, window: int | None = None, blocks: Sequence[Block] = ()
) -> KeyRanges:
    """The ranges of whole documents, packed one after the other.

    Args:
        lengths: tokens of each document; zero is allowed.
        is_causal: False lets every token see its whole document.
        window: a query sees itself and the ``window - 1`` positions before it; None is unlimited.
        blocks: bidirectional blocks, disjoint.

    Raises:
        ValueError: a window or block without causality, a window below 1, a block outside its document.
    """
    positions = [np.arange(length, dtype=np.int64) for length in lengths]
    return sharded_ranges(positions, positions, is_causal=is_causal, window=window, blocks=blocks)


def sharded_ranges(
    query_positions: Sequence[Rows],
    key_positions: Sequence[Rows],
    *,
    is_causal: bool = True,
    window: int | None = None,
    blocks: Sequence[Block] = (),
) -> KeyRanges:
    """The ranges when this rank's queries meet one source's keys.

    Args:
        query_positions: for each document the global positions of the query rows held here, ascending;
            the documents' rows lie one after the other.
        key_positions: likewise for the key rows.
        is_causal, window, blocks: as in :func:`packed_ranges`, in global positions.

    Raises:
        ValueError: as in :func:`packed_ranges`, or positions that do not ascend.
    """
    _check(query_positions, key_positions, is_causal, window, blocks)
    spans: list[Span] = []
    lows: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    highs: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    q_start = k_start = 0
    is_plain = not blocks and window is None
    for document, (queries, keys) in enumerate(zip(query_positions, key_positions, strict=True)):
        spans.append(Span(q_start, len(queries), k_start, len(keys)))
        q_start, k_start = q_start + len(queries), k_start + len(keys)
        if is_causal:
            own = [block for block in blocks if block.document == document]
            low, high = _seen_positions(queries, window, own)
            lo, hi = np.searchsorted(keys, low), np.searchsorted(keys, high)
            is_plain = is_plain and np.array_equal(queries, keys)
        else:
            lo, hi = np.zeros(len(queries), np.int64), np.full(len(queries), len(keys), np.int64)
        lows.append(np.minimum(lo, hi).astype(np.int32))
        highs.append(hi.astype(np.int32))
    kind: MaskKind = "full" if not is_causal else "causal" if is_plain else "ranges"
    return KeyRanges(tuple(spans), np.concatenate(lows), np.concatenate(highs), kind, q_start, k_start)


def seen_by(ranges: KeyRanges) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For every key row the queries that see it, ``[first, stop)`` counted from its document's first query row.

    Also one interval each, because the ends of what queries see never move back.
    """
    first, stop = np.zeros(ranges.num_key_rows, np.int32), np.zeros(ranges.num_key_rows, np.int32)
    for span in ranges.spans:
        queries = slice(span.q_start, span.q_start + span.num_queries)
        keys = slice(span.k_start, span.k_start + span.num_keys)
        key = np.arange(span.num_keys)
        first[keys] = np.searchsorted(ranges.hi[queries], key, side="right")
        stop[keys] = np.searchsorted(ranges.lo[queries], key, side="right")
    return first, np.maximum(first, stop)


def _seen_positions(queries: Rows, window: int | None, blocks: Sequence[Block]) -> tuple[Rows, Rows]:
    """First and one past the last position that each query position sees."""
    low = np.zeros_like(queries) if window is None else queries - window + 1
    high = queries + 1
    for block in blocks:
        inside = (queries >= block.start) & (queries < block.stop)
        low = np.where(inside, np.minimum(low, block.start), low)
        high = np.where(inside, np.maximum(high, block.stop), high)
    return low, high


def _check(
    query_positions: Sequence[Rows],
    key_positions: Sequence[Rows],
    is_causal: bool,
    window: int | None,
    blocks: Sequence[Block],
) -> None:
    if not is_causal and (window is not None or blocks):
        raise ValueError("window and blocks refine causal attention; drop them or set is_causal=True")
    if window is not None and window < 1:
        raise ValueError(f"window={window}: a query sees at least itself; use window >= 1 or None")
    for name, documents in (("query_positions", query_positions), ("key_positions", key_positions)):
        for document, positions in enumerate(documents):
            if len(positions) and (positions[0] < 0 or np.any(np.diff(positions) <= 0)):
                raise ValueError(f"{name}[{document}] does not ascend from 0 or above; sort the rows of a shard")
    ordered = sorted(blocks, key=lambda block: (block.document, block.start))
    for block in ordered:
        if not (0 <= block.document < len(query_positions) and 0 <= block.start < block.stop):
            raise ValueError(f"{block} is empty or names no document of {len(query_positions)}")
    for first, second in itertools.pairwise(ordered):
        if first.document == second.document and first.stop > second.start:
            raise ValueError(f"{first} and {second} overlap; merge them")
