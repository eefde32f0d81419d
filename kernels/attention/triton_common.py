"""What the portable Triton kernels of attention share: reading tile records, masks, products."""

from __future__ import annotations

import triton
import triton.language as tl

from hetsched.kernels.attention import work

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
ROW, NUM_ROWS = tl.constexpr(work.ROW), tl.constexpr(work.NUM_ROWS)
OTHER_ROW, NUM_OTHER, LOCAL = tl.constexpr(work.OTHER_ROW), tl.constexpr(work.NUM_OTHER), tl.constexpr(work.LOCAL)
START, COUNT = tl.constexpr(work.START), tl.constexpr(work.COUNT)
NEAR, FAR, PAD_ROW = tl.constexpr(work.NEAR), tl.constexpr(work.FAR), tl.constexpr(work.PAD_ROW)
NUM_COLUMNS = tl.constexpr(work.NUM_COLUMNS)
FULL, CAUSAL, RANGES = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MASK_KINDS = {"full": 0, "causal": 1, "ranges": 2}


@triton.jit
def tile_record(tiles_ptr, tile):
    """The record of a tile: ROW, NUM_ROWS, OTHER_ROW, NUM_OTHER, LOCAL, PAD_ROW, START, COUNT, NEAR, FAR."""
    record = tiles_ptr + tile * NUM_COLUMNS
    rows = tl.load(record + ROW), tl.load(record + NUM_ROWS), tl.load(record + OTHER_ROW), tl.load(record + NUM_OTHER)
    visits = tl.load(record + START), tl.load(record + COUNT), tl.load(record + NEAR), tl.load(record + FAR)
    place = tl.load(record + LOCAL), tl.load(record + PAD_ROW)
    return rows[0], rows[1], rows[2], rows[3], place[0], place[1], visits[0], visits[1], visits[2], visits[3]


@triton.jit
def masked_visit(step, start, count, near, far, STEP: tl.constexpr):
    """Index of the tile visited at a step below ``near + far``: from the near end, then from the far end."""
    from_far = start + STEP * (count - 1 - (step - near))
    return tl.where(step < near, start + STEP * step, from_far)


@triton.jit
def query_bounds(lo_ptr, hi_ptr, rows, local, is_row, num_keys, MASK: tl.constexpr):
    """The interval of keys that each query row of a tile sees; empty for rows past the document's end."""
    if MASK == RANGES:
        lo = tl.load(lo_ptr + rows, mask=is_row, other=0)
        hi = tl.load(hi_ptr + rows, mask=is_row, other=0)
    else:
        lo = tl.zeros_like(local)
        hi = tl.where(is_row, local + 1 if MASK == CAUSAL else num_keys, 0)
    return lo, hi


@triton.jit
def key_bounds(seen_ptr, total_keys, rows, local, is_row, num_queries, MASK: tl.constexpr):
    """The interval of queries that see each key row of a tile; empty for rows past the document's end.

    ``seen_ptr`` holds the first queries for all ``total_keys`` key rows, then the ends.
    """
    if MASK == RANGES:
        first = tl.load(seen_ptr + rows, mask=is_row, other=0)
        stop = tl.load(seen_ptr + total_keys + rows, mask=is_row, other=0)
    else:
        first = tl.zeros_like(local)
        if MASK == CAUSAL:
            first = local
        stop = tl.where(is_row, num_queries, 0)
    return first, stop


@triton.jit
def rows_of(
    ptr, first_row, num_rows, row_stride, column, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """A descriptor of ``WIDTH`` columns of one document's rows: reads past its end give zeros, writes go nowhere."""
    base = ptr + first_row.to(tl.int64) * row_stride + column
    return tl.make_tensor_descriptor(base, [num_rows, WIDTH], [row_stride, 1], [ROWS, BLOCK_D])


@triton.jit
def product(a, b, acc, UPCAST: tl.constexpr):
    """``acc + a @ b``, or ``a @ b`` for None, in float32.

    UPCAST is for the CPU interpreter, which multiplies 16-bit operands wrongly.
    """
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
