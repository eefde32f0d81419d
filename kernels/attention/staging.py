"""Where a rank keeps its own keys and values beside those that it pulls from other ranks, and how its own get there.

A *stage* is ``[parts, rows, 2, heads of a part, D]``: few heads at a time, with K and V side by side, so that a run of
rows of one part is one contiguous copy, and the first heads can be computed on before the last have come.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hetsched.kernels.attention.triton import packed_heads

_ROWS = 64


def fill(stage: Tensor, k_TKD: Tensor, v_TKD: Tensor, places: Tensor) -> None:
    """Writes this rank's keys and values.

    Args:
        stage: ``[parts, rows, 2, heads of a part, D]``, contiguous.
        k_TKD, v_TKD: ``[T, K, D]``, D a power of two.
        places: int32 ``[T]``, the row of the stage that each row goes to.
    """
    num_rows, num_heads, head_dim = k_TKD.shape
    if num_rows == 0:
        return
    k, v = packed_heads(k_TKD), packed_heads(v_TKD)
    grid = (triton.cdiv(num_rows, _ROWS), num_heads, 2)
    strides = (k.stride(0), v.stride(0))
    fill_kernel[grid](
        *(k, v, stage, places, num_rows, *strides, stage.shape[1]), HEADS=stage.shape[3], D=head_dim, ROWS=_ROWS
    )


@triton.jit(do_not_specialize=["num_rows", "stage_rows"])
def fill_kernel(
    k_ptr,
    v_ptr,
    stage_ptr,
    places_ptr,
    num_rows,
    k_stride,
    v_stride,
    stage_rows,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One block of rows of one head, keys or values, to their places."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head, is_value = tl.program_id(1), tl.program_id(2)
    column, is_row = tl.arange(0, D), row < num_rows
    source = k_ptr + row[:, None].to(tl.int64) * k_stride
    if is_value:
        source = v_ptr + row[:, None].to(tl.int64) * v_stride
    x = tl.load(source + head * D + column[None, :], mask=is_row[:, None])
    place = tl.load(places_ptr + row, mask=is_row, other=0).to(tl.int64) + (head // HEADS).to(tl.int64) * stage_rows
    slot = place * 2 + is_value
    tl.store(stage_ptr + (slot[:, None] * HEADS + head % HEADS) * D + column[None, :], x, mask=is_row[:, None])
