"""dq for Hopper in Gluon, in a fixed order: persistent programs over dealt (query tile, head) items.

The half that :mod:`hopper_backward` leaves out without WITH_DQ. A producer warp streams key and value tiles; two
consumer warpgroups own 64 query rows each and keep their dq in registers. With PULLED, keys may still be on their way,
as in :mod:`hopper_forward`.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from hetsched.kernels.attention.hopper_arrival import await_tile, load_either, place_of
from hetsched.kernels.attention.hopper_support import (
    COUNT,
    FAR,
    LOCAL,
    NEAR,
    NUM_OTHER,
    NUM_ROWS,
    OTHER_ROW,
    PAD_ROW,
    ROW,
    START,
    box,
    load_box,
    make_ring,
    query_bounds,
    schedule_of,
)

BLOCK_Q = gl.constexpr(128)
BLOCK_K = gl.constexpr(128)
HALF = gl.constexpr(64)


@gluon.jit
def _produce(
    schedule, q_desc, dout_desc, k_desc, v_desc, staged_k_desc, staged_v_desc, q, dout, k, v, needs_ptr, counter_ptr,
    lost_ptr, landed, part_rows, GROUP: gl.constexpr, D: gl.constexpr, PULLED: gl.constexpr,
):  # fmt: skip
    loaded = 0
    here = 0
    i = 0
    while schedule.has(i):
        head, record = schedule.item(i)
        first_row, own_rows = gl.load(record + ROW), gl.load(record + NUM_ROWS)
        key_row, num_keys = gl.load(record + OTHER_ROW), gl.load(record + NUM_OTHER)
        start, count = gl.load(record + START), gl.load(record + COUNT)
        at = box(first_row, own_rows, 0, head * D)
        load_box(q_desc, at, q.await_empty(i, BLOCK_Q * D * 2), q.slot(i))
        load_box(dout_desc, at, dout.await_empty(i, BLOCK_Q * D * 2), dout.slot(i))
        is_own, part, place, column = place_of(key_row, head // GROUP, part_rows, PULLED, D)
        for step in range(count):
            tile = start - step
            if PULLED:
                number, stage_tiles = key_row // BLOCK_K + tile, part_rows // BLOCK_K
                here = await_tile(needs_ptr, counter_ptr, lost_ptr, landed, here, part, number, stage_tiles)
            at = box(place, num_keys, tile * BLOCK_K, column)
            barrier = k.await_empty(loaded, BLOCK_K * D * 2)
            load_either(is_own, k_desc, staged_k_desc, at, barrier, k.slot(loaded), PULLED)
            barrier = v.await_empty(loaded, BLOCK_K * D * 2)
            load_either(is_own, v_desc, staged_v_desc, at, barrier, v.slot(loaded), PULLED)
            loaded += 1
        i += 1


@gluon.jit
def _step(i, dq, queries, gradients, k, v, lse, delta, lo, hi, first_key, is_masked, scale_log2):
    """Add key tile ``i``; scores start from -lse / scale and dp from -delta."""
    LS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    dtype: gl.constexpr = k.slots.dtype
    zero = gl.zeros([HALF, BLOCK_K], gl.float32, LS)
    k_tile, v_tile = k.slot(i), v.slot(i)
    k.await_full(i)
    s_token = warpgroup_mma(queries, k_tile.permute((1, 0)), zero + lse[:, None], is_async=True)
    v.await_full(i)
    dp_token = warpgroup_mma(gradients, v_tile.permute((1, 0)), zero + delta[:, None], is_async=True)
    p = gl.exp2(warpgroup_mma_wait(1, deps=[s_token]) * scale_log2)
    if is_masked:
        key = first_key + gl.arange(0, BLOCK_K, gl.SliceLayout(0, LS))
        p = gl.where((key[None, :] >= lo[:, None]) & (key[None, :] < hi[:, None]), p, 0.0)
    dp = warpgroup_mma_wait(0, deps=[dp_token])
    v.release(i)
    ds = gl.convert_layout((p * dp).to(dtype), gl.DotOperandLayout(0, dq.type.layout, 2))
    dq_token = warpgroup_mma(ds, k_tile, dq, is_async=True)
    dq, ds = warpgroup_mma_wait(0, deps=[dq_token, ds])
    k.release(i)
    return dq


@gluon.jit
def _consume(
    c: gl.constexpr, schedule, lse_ptr, delta_ptr, dq_ptr, lo_ptr, hi_ptr, q, dout, k, v, padded_rows, scale_log2,
    scale, D: gl.constexpr, MASK: gl.constexpr, ACCUMULATE: gl.constexpr,
):  # fmt: skip
    LS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    LQ: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row = c * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LS))
    used = 0
    i = 0
    while schedule.has(i):
        head, record = schedule.item(i)
        first_row, own_rows, local = gl.load(record + ROW), gl.load(record + NUM_ROWS), gl.load(record + LOCAL)
        start, count, num_keys = gl.load(record + START), gl.load(record + COUNT), gl.load(record + NUM_OTHER)
        near, far = gl.load(record + NEAR), gl.load(record + FAR)
        lo, hi = query_bounds(lo_ptr, hi_ptr, first_row, own_rows, local, row, num_keys, MASK)
        at = head.to(gl.int64) * padded_rows + gl.load(record + PAD_ROW) + row
        lse, delta = gl.load(lse_ptr + at), gl.load(delta_ptr + at)
        dq = gl.zeros([HALF, D], gl.float32, LQ)
        q.await_full(i)
        dout.await_full(i)
        queries, gradients = q.slot(i).slice(c * HALF, HALF, dim=0), dout.slot(i).slice(c * HALF, HALF, dim=0)
        for step in range(count):
            is_masked = (step < near) | (step >= count - far)
            first_key = (start - step) * BLOCK_K
            dq = _step(used + step, dq, queries, gradients, k, v, lse, delta, lo, hi, first_key, is_masked, scale_log2)
        used += count
        q.release(i)
        dout.release(i)
        own_row = c * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LQ))
        columns = head * D + gl.arange(0, D, gl.SliceLayout(0, LQ))
        dq_ptrs = dq_ptr + (first_row + own_row).to(gl.int64)[:, None] * (schedule.heads * D) + columns[None, :]
        is_value = (own_row < own_rows)[:, None]
        dq = dq * scale
        if ACCUMULATE:
            dq += gl.load(dq_ptrs, mask=is_value, other=0.0)
        gl.store(dq_ptrs, dq.to(dq_ptr.dtype.element_ty), mask=is_value)
        i += 1


@gluon.jit(do_not_specialize=["padded_rows", "width", "landed", "part_rows"])
def dq_kernel(
    q_desc, dout_desc, k_desc, v_desc, lse_ptr, delta_ptr, dq_ptr, lo_ptr, hi_ptr, tiles_ptr, workers_ptr,
    staged_k_desc, staged_v_desc, needs_ptr, counter_ptr, lost_ptr, padded_rows, width, landed, part_rows, scale_log2,
    scale, HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, MASK: gl.constexpr, ACCUMULATE: gl.constexpr,
    PULLED: gl.constexpr,
):  # fmt: skip
    """dq ``[rows, HEADS, D]`` of the dealt items; with ACCUMULATE added to what is there.

    q, dout, k and v are reached by ragged descriptors of ``[rows, heads * D]``; lse and delta hold
    -lse / scale and -delta, ``[HEADS, padded_rows]``, with -inf and 0 where there is no query. Unless PULLED is 0,
    the keys of some documents are in a :class:`hetsched.kernels.attention.staging.Staged`.
    """
    dtype: gl.constexpr = q_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    q = make_ring(dtype, 1, (BLOCK_Q, D), layout)
    dout = make_ring(dtype, 1, (BLOCK_Q, D), layout)
    k = make_ring(dtype, 2, (BLOCK_K, D), layout)
    v = make_ring(dtype, 2, (BLOCK_K, D), layout)
    fence_async_shared()
    schedule = schedule_of(workers_ptr, tiles_ptr, width, HEADS)
    gl.warp_specialize(
        [
            (_consume, (0, schedule, lse_ptr, delta_ptr, dq_ptr, lo_ptr, hi_ptr, q, dout, k, v, padded_rows, scale_log2,
                        scale, D, MASK, ACCUMULATE)),
            (_consume, (1, schedule, lse_ptr, delta_ptr, dq_ptr, lo_ptr, hi_ptr, q, dout, k, v, padded_rows, scale_log2,
                        scale, D, MASK, ACCUMULATE)),
            (_produce, (schedule, q_desc, dout_desc, k_desc, v_desc, staged_k_desc, staged_v_desc, q, dout, k, v,
                        needs_ptr, counter_ptr, lost_ptr, landed, part_rows, GROUP, D, PULLED)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
