"""Row-wise Triton kernels around the Hopper backward: padded row statistics before it, dq's scale and cast after it."""

from __future__ import annotations

import triton
import triton.language as tl

from hetsched.kernels.attention import work

ROW, NUM_ROWS, PAD_ROW = tl.constexpr(work.ROW), tl.constexpr(work.NUM_ROWS), tl.constexpr(work.PAD_ROW)
NUM_COLUMNS, PAD = tl.constexpr(work.NUM_COLUMNS), tl.constexpr(work.PAD)


@triton.jit(do_not_specialize=["num_rows", "padded_rows"])
def pad_statistics_kernel(
    lse_ptr, delta_ptr, padded_lse_ptr, padded_delta_ptr, tiles_ptr, num_rows, padded_rows, inverse_scale
):
    """``-lse / scale`` and ``-delta`` of one 128-row query tile and head, at the document's padded rows.

    Padding lets 1-D TMA read any tile (16-byte alignment) and gives missing queries and queries without keys
    -inf, hence probability 0.
    """
    record, head = tiles_ptr + tl.program_id(0) * NUM_COLUMNS, tl.program_id(1).to(tl.int64)
    row = tl.arange(0, PAD)
    is_row = row < tl.load(record + NUM_ROWS)
    source = head * num_rows + tl.load(record + ROW) + row
    target = head * padded_rows + tl.load(record + PAD_ROW) + row
    lse = tl.load(lse_ptr + source, mask=is_row, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    tl.store(padded_lse_ptr + target, -lse * inverse_scale)
    tl.store(padded_delta_ptr + target, -tl.load(delta_ptr + source, mask=is_row, other=0.0))


@triton.jit
def scale_kernel(sum_ptr, out_ptr, num_values, scale, ACCUMULATE: tl.constexpr, VALUES: tl.constexpr):
    """``out = sum * scale``, or added to ``out`` with ACCUMULATE."""
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    is_value = at < num_values
    result = tl.load(sum_ptr + at, mask=is_value, other=0.0) * scale
    if ACCUMULATE:
        result += tl.load(out_ptr + at, mask=is_value, other=0.0)
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=is_value)
