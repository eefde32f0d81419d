"""Row-wise Triton kernels around the backward: delta and padded statistics before it, dq's scale and cast after it."""

from __future__ import annotations

import triton
import triton.language as tl

from hetsched.kernels.attention import work

PAD = tl.constexpr(work.PAD)


@triton.jit
def delta_kernel(
    out_ptr,
    dout_ptr,
    delta_ptr,
    num_rows,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """``delta[head, row]``: the row sums of output times its gradient, both ``[num_rows, HEADS, D]``."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head, column = tl.program_id(1), tl.arange(0, BLOCK_D)
    offsets = row[:, None].to(tl.int64) * (HEADS * D) + head * D + column[None, :]
    is_value = (row < num_rows)[:, None] & (column < D)[None, :]
    out = tl.load(out_ptr + offsets, mask=is_value, other=0.0).to(tl.float32)
    dout = tl.load(dout_ptr + offsets, mask=is_value, other=0.0).to(tl.float32)
    tl.store(delta_ptr + head.to(tl.int64) * num_rows + row, tl.sum(out * dout, 1), mask=row < num_rows)


@triton.jit(do_not_specialize=["head_stride", "padded_rows"])
def pad_statistics_kernel(
    lse_ptr,
    delta_ptr,
    padded_lse_ptr,
    padded_delta_ptr,
    blocks_ptr,
    head_stride,
    row_stride,
    padded_rows,
    inverse_scale,
):
    """``-lse / scale`` and ``-delta`` of one block of queries and head, at the document's padded rows.

    These are what scores and dp start from, so that the loops need neither. Padding lets them read any tile (16-byte
    alignment for TMA), and missing queries and queries without keys get -inf, hence probability 0.
    """
    block, head = blocks_ptr + tl.program_id(0) * 3, tl.program_id(1).to(tl.int64)
    row = tl.arange(0, PAD)
    is_row = row < tl.load(block + 1)
    source = head * head_stride + (tl.load(block) + row).to(tl.int64) * row_stride
    target = head * padded_rows + tl.load(block + 2) + row
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
