"""Portable Triton backward: a dkv kernel that owns key tiles and a dq kernel that owns query tiles.

Both recompute the probabilities from the final lse (FlashAttention-2, arXiv 2307.08691, section 3.1.2). Every
sum runs in a fixed order in one program, so that repeats are bitwise equal: seven products a tile pair
where atomics would need five.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hetsched.kernels.attention.triton_common import (
    key_bounds,
    masked_visit,
    product,
    query_bounds,
    rows_of,
    tile_record,
)


@triton.jit
def _dkv_step(dk, dv, k, v, q, dout, lse, delta, is_seen, scale_log2, MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """Add one query tile's part. Scores are transposed, keys by queries, so that both sums take them as they are."""
    zero = tl.zeros([k.shape[0], q.shape[0]], tl.float32)
    p = tl.math.exp2(product(k, tl.trans(q), zero + lse[None, :], UPCAST) * scale_log2)
    if MASKED:
        p = tl.where(is_seen, p, 0.0)
    dv = product(p.to(dout.dtype), dout, dv, UPCAST)
    ds = p * product(v, tl.trans(dout), zero + delta[None, :], UPCAST)
    dk = product(ds.to(q.dtype), q, dk, UPCAST)
    return dk, dv


@triton.jit(do_not_specialize=["padded_rows", "total_keys"])
def dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    seen_ptr,
    tiles_ptr,
    order_ptr,
    padded_rows,
    total_keys,
    q_stride,
    k_stride,
    v_stride,
    scale_log2,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dk and dv ``[total_keys, HEADS / GROUP, D]`` of one key tile and key head, summed over its query heads."""
    item = tl.load(order_ptr + tl.program_id(0))
    KV_HEADS: tl.constexpr = HEADS // GROUP
    kv_head = item % KV_HEADS
    tile = tile_record(tiles_ptr, item // KV_HEADS)
    first_row, own_rows, q_row, num_queries, local, pad_row, start, count, near, far = tile

    k = rows_of(k_ptr, first_row, own_rows, k_stride, kv_head * D, D, BLOCK_K, BLOCK_D).load([0, 0])
    v = rows_of(v_ptr, first_row, own_rows, v_stride, kv_head * D, D, BLOCK_K, BLOCK_D).load([0, 0])
    dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    key, query = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_Q)
    is_key = key < own_rows
    seen_first, seen_stop = key_bounds(seen_ptr, total_keys, first_row + key, local + key, is_key, num_queries, MASK)
    # one descriptor for all heads of the group. Where BLOCK_D exceeds D it also reads columns of the next head, which
    # meet zeros of k and v, or end in columns that are not stored
    WIDTH: tl.constexpr = GROUP * D
    queries = rows_of(q_ptr, q_row, num_queries, q_stride, kv_head * WIDTH, WIDTH, BLOCK_Q, BLOCK_D)
    gradients = rows_of(dout_ptr, q_row, num_queries, HEADS * D, kv_head * WIDTH, WIDTH, BLOCK_Q, BLOCK_D)
    statistics = (kv_head * GROUP).to(tl.int64) * padded_rows + pad_row + query
    # the heads of the group follow each other in one loop: a nested one costs registers and drains the pipeline.
    # The masked loop is pipelined too, or ptxas serializes the products of both where there are eight warps
    masked, free = near + far, count - near - far
    for flat in tl.range(0, GROUP * masked):
        member = flat // masked if GROUP > 1 else 0
        first = masked_visit(flat - member * masked, start, count, near, far, 1) * BLOCK_Q
        at = statistics + member * padded_rows + first
        q, dout = queries.load([first, member * D]), gradients.load([first, member * D])
        lse, delta = tl.load(lse_ptr + at), tl.load(delta_ptr + at)
        is_seen = (first + query >= seen_first[:, None]) & (first + query < seen_stop[:, None])
        dk, dv = _dkv_step(dk, dv, k, v, q, dout, lse, delta, is_seen, scale_log2, True, UPCAST)
    for flat in tl.range(0, GROUP * free):
        member = flat // free if GROUP > 1 else 0
        first = (start + near + flat - member * free) * BLOCK_Q
        at = statistics + member * padded_rows + first
        q, dout = queries.load([first, member * D]), gradients.load([first, member * D])
        lse, delta = tl.load(lse_ptr + at), tl.load(delta_ptr + at)
        dk, dv = _dkv_step(dk, dv, k, v, q, dout, lse, delta, False, scale_log2, False, UPCAST)

    row, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    rows = (first_row + row).to(tl.int64)
    offsets = rows[:, None] * (KV_HEADS * D) + kv_head * D + column[None, :]
    is_value = (row < own_rows)[:, None] & (column < D)[None, :]
    tl.store(dk_ptr + offsets, (dk * scale).to(dk_ptr.dtype.element_ty), mask=is_value)
    tl.store(dv_ptr + offsets, dv.to(dv_ptr.dtype.element_ty), mask=is_value)


@triton.jit
def _dq_step(dq, q, dout, k, v, lse, delta, is_seen, scale_log2, MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """Add one key tile's part. Unlike above, row statistics stay in registers over the loop, and are added late."""
    p = tl.math.exp2(product(q, tl.trans(k), None, UPCAST) * scale_log2 + lse[:, None])
    if MASKED:
        p = tl.where(is_seen, p, 0.0)
    ds = p * (product(dout, tl.trans(v), None, UPCAST) + delta[:, None])
    return product(ds.to(k.dtype), k, dq, UPCAST)


@triton.jit(do_not_specialize=["padded_rows"])
def dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    lo_ptr,
    hi_ptr,
    tiles_ptr,
    order_ptr,
    padded_rows,
    q_stride,
    k_stride,
    v_stride,
    scale_log2,
    scale,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dq ``[rows, HEADS, D]`` of one query tile and head; with ACCUMULATE added to what is there."""
    item = tl.load(order_ptr + tl.program_id(0))
    head = item % HEADS
    tile = tile_record(tiles_ptr, item // HEADS)
    first_row, own_rows, key_row, num_keys, local, pad_row, start, count, near, far = tile

    row = tl.arange(0, BLOCK_Q)
    is_row = row < own_rows
    rows = (first_row + row).to(tl.int64)
    lo, hi = query_bounds(lo_ptr, hi_ptr, first_row + row, local + row, is_row, num_keys, MASK)
    at = head.to(tl.int64) * padded_rows + pad_row + row
    lse, delta = tl.load(lse_ptr + at) * scale_log2, tl.load(delta_ptr + at)
    q = rows_of(q_ptr, first_row, own_rows, q_stride, head * D, D, BLOCK_Q, BLOCK_D).load([0, 0])
    dout = rows_of(dout_ptr, first_row, own_rows, HEADS * D, head * D, D, BLOCK_Q, BLOCK_D).load([0, 0])
    keys = rows_of(k_ptr, key_row, num_keys, k_stride, head // GROUP * D, D, BLOCK_K, BLOCK_D)
    values = rows_of(v_ptr, key_row, num_keys, v_stride, head // GROUP * D, D, BLOCK_K, BLOCK_D)
    dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for step in tl.range(0, near + far):
        first = masked_visit(step, start, count, near, far, -1) * BLOCK_K
        key = first + tl.arange(0, BLOCK_K)
        is_seen = (key[None, :] >= lo[:, None]) & (key[None, :] < hi[:, None])
        k, v = keys.load([first, 0]), values.load([first, 0])
        dq = _dq_step(dq, q, dout, k, v, lse, delta, is_seen, scale_log2, True, UPCAST)
    for step in tl.range(near + far, count):
        first = (start - (step - far)) * BLOCK_K
        k, v = keys.load([first, 0]), values.load([first, 0])
        dq = _dq_step(dq, q, dout, k, v, lse, delta, False, scale_log2, False, UPCAST)

    column = tl.arange(0, BLOCK_D)
    dq_ptrs = dq_ptr + rows[:, None] * (HEADS * D) + head * D + column[None, :]
    is_value = is_row[:, None] & (column < D)[None, :]
    dq = dq * scale
    if ACCUMULATE:
        dq += tl.load(dq_ptrs, mask=is_value, other=0.0)
    tl.store(dq_ptrs, dq.to(dq_ptr.dtype.element_ty), mask=is_value)
