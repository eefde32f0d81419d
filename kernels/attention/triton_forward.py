"""Portable Triton forward: one program per (query tile, head), longest first.

Online softmax over key tiles with rows' maxima and sums in registers (FlashAttention-2, arXiv 2307.08691, section
3.1). Tensor descriptors bound to a document keep tiles from reaching into the next one; they are TMA where there is
hardware.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hetsched.kernels.attention.triton_common import (
    LN2,
    LOG2E,
    masked_visit,
    product,
    query_bounds,
    rows_of,
    tile_record,
)


@triton.jit
def _softmax_step(acc, m, total, s, v, scale_log2, UPCAST: tl.constexpr):
    new_m = tl.maximum(m, tl.max(s, 1) * scale_log2)
    # a row that has seen no key yet keeps m = -inf, and its exponents must not become -inf - (-inf)
    base = tl.where(new_m == float("-inf"), 0.0, new_m)
    p = tl.math.exp2(s * scale_log2 - base[:, None])
    shrink = tl.math.exp2(m - base)
    total = total * shrink + tl.sum(p, 1)
    acc = product(p.to(v.dtype), v, acc * shrink[:, None], UPCAST)
    return acc, new_m, total


@triton.jit
def _carry_in(acc, m, total, out_ptr, lse_ptr, is_row, is_value):
    """Merge the (output, lse) over other keys into the softmax state."""
    carried = tl.load(out_ptr, mask=is_value, other=0.0)
    carried_m = tl.load(lse_ptr, mask=is_row, other=float("-inf")) * LOG2E
    new_m = tl.maximum(m, carried_m)
    base = tl.where(new_m == float("-inf"), 0.0, new_m)
    own, other = tl.math.exp2(m - base), tl.math.exp2(carried_m - base)
    return acc * own[:, None] + carried * other[:, None], new_m, total * own + other


@triton.jit(do_not_specialize=["num_rows"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    lo_ptr,
    hi_ptr,
    tiles_ptr,
    order_ptr,
    num_rows,
    q_stride,
    k_stride,
    v_stride,
    scale_log2,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASK: tl.constexpr,
    CARRY: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Output and lse of one query tile and head. With CARRY, out and lse are read, continued and written back.

    Layouts: q, k, v ``[rows, heads, D]`` with any row stride; out ``[num_rows, HEADS, D]``; lse ``[HEADS, num_rows]``.
    """
    item = tl.load(order_ptr + tl.program_id(0))
    head = item % HEADS
    tile = tile_record(tiles_ptr, item // HEADS)
    first_row, own_rows, key_row, num_keys, local, _, start, count, near, far = tile

    row = tl.arange(0, BLOCK_Q)
    is_row = row < own_rows
    lo, hi = query_bounds(lo_ptr, hi_ptr, first_row + row, local + row, is_row, num_keys, MASK)
    q = rows_of(q_ptr, first_row, own_rows, q_stride, head * D, D, BLOCK_Q, BLOCK_D).load([0, 0])
    keys = rows_of(k_ptr, key_row, num_keys, k_stride, head // GROUP * D, D, BLOCK_K, BLOCK_D)
    values = rows_of(v_ptr, key_row, num_keys, v_stride, head // GROUP * D, D, BLOCK_K, BLOCK_D)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)

    for step in tl.range(0, near + far, num_stages=1):
        first_key = masked_visit(step, start, count, near, far, -1) * BLOCK_K
        s = product(q, tl.trans(keys.load([first_key, 0])), None, UPCAST)
        key = first_key + tl.arange(0, BLOCK_K)
        s = tl.where((key[None, :] >= lo[:, None]) & (key[None, :] < hi[:, None]), s, float("-inf"))
        acc, m, total = _softmax_step(acc, m, total, s, values.load([first_key, 0]), scale_log2, UPCAST)
    for step in tl.range(near + far, count):
        first_key = (start - (step - far)) * BLOCK_K
        s = product(q, tl.trans(keys.load([first_key, 0])), None, UPCAST)
        acc, m, total = _softmax_step(acc, m, total, s, values.load([first_key, 0]), scale_log2, UPCAST)

    rows = (first_row + row).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    out_ptrs = out_ptr + rows[:, None] * (HEADS * D) + head * D + column[None, :]
    lse_ptrs = lse_ptr + head.to(tl.int64) * num_rows + rows
    is_value = is_row[:, None] & (column < D)[None, :]
    if CARRY:
        acc, m, total = _carry_in(acc, m, total, out_ptrs, lse_ptrs, is_row, is_value)
    total = tl.where(total > 0, total, 1.0)
    out = acc / total[:, None]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=is_value)
    tl.store(lse_ptrs, (m + tl.math.log2(total)) * LN2, mask=is_row)
