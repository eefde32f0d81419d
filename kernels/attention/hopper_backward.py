"""dk and dv, and in the fast mode dq, for Hopper in Gluon: persistent programs over dealt (key tile, key head) items.

A producer warp feeds 64-row query tiles by TMA to two consumer warpgroups of 64 key rows each. Scores are transposed
(keys by queries), so that probabilities and score gradients are register operands of the products for dv and dk.
The row statistics arrive with the tiles and are the accumulators' first values. With WITH_DQ, ds goes through shared
memory, both warpgroups multiply half of dq's columns each, and a warp of its own adds them to float32 global memory by
TMA: five products a tile, in whatever order programs arrive. Without, dk and dv only, in a fixed order.
Source: FlashAttention-3, arXiv 2407.08608, section 3, for the division into producer and consumers.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from hetsched.kernels.attention.hopper_support import (
    CAUSAL,
    COUNT,
    FAR,
    LN2,
    NEAR,
    NUM_OTHER,
    NUM_ROWS,
    OTHER_ROW,
    PAD_ROW,
    RANGES,
    ROW,
    START,
    aggregate,
    barriers,
    box,
    is_seen,
    load_box,
    make_ring,
    reduce_add,
    schedule_of,
)

BLOCK_Q = gl.constexpr(64)
BLOCK_K = gl.constexpr(128)
HALF = gl.constexpr(64)


@aggregate
class Halves:
    """Where the consumers meet for dq: score gradients that both read, and the half of dq that each makes."""

    ds: gl.shared_memory_descriptor
    ds_full: gl.shared_memory_descriptor
    dq: gl.shared_memory_descriptor
    dq_full: gl.shared_memory_descriptor
    dq_empty: gl.shared_memory_descriptor

    @gluon.constexpr_function
    def __init__(self, ds, ds_full, dq, dq_full, dq_empty):
        self.ds = ds
        self.ds_full = ds_full
        self.dq = dq
        self.dq_full = dq_full
        self.dq_empty = dq_empty


@gluon.jit
def _make_halves(dtype: gl.constexpr, layout: gl.constexpr, D: gl.constexpr):
    dq_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2)
    ds = gl.allocate_shared_memory(dtype, [2, BLOCK_K, BLOCK_Q], layout)
    dq = gl.allocate_shared_memory(gl.float32, [2, BLOCK_Q, D // 2], dq_layout)
    return Halves(ds, barriers(2, 2), dq, barriers(2, 1), barriers(2, 1))


@gluon.jit
def _produce(
    schedule, q_desc, dout_desc, k_desc, v_desc, staged_q_desc, staged_dout_desc, lse_desc, delta_desc, q, dout, k, v,
    lse_slots, delta_slots, padded_rows, stage_rows, GROUP: gl.constexpr, D: gl.constexpr, PULLED: gl.constexpr,
):  # fmt: skip
    loaded = 0
    i = 0
    while schedule.has(i):
        kv_head, record = schedule.item(i)
        first_row, own_rows = gl.load(record + ROW), gl.load(record + NUM_ROWS)
        q_row, num_queries = gl.load(record + OTHER_ROW), gl.load(record + NUM_OTHER)
        start, count = gl.load(record + START), gl.load(record + COUNT)
        pad_row = gl.load(record + PAD_ROW)
        if PULLED:
            q_row -= gl.where(q_row >= stage_rows, stage_rows, 0)
        at = box(first_row, own_rows, 0, kv_head * D)
        load_box(k_desc, at, k.await_empty(i, BLOCK_K * D * 2), k.slot(i))
        load_box(v_desc, at, v.await_empty(i, BLOCK_K * D * 2), v.slot(i))
        for member in range(GROUP):
            head = kv_head * GROUP + member
            for step in range(count):
                first = (start + step) * BLOCK_Q
                q_full = q.await_empty(loaded, BLOCK_Q * D * 2 + BLOCK_Q * 4)
                # consumers release both tiles at once, through q: every arrival costs them barriers
                dout_full = dout.announce(loaded, BLOCK_Q * D * 2 + BLOCK_Q * 4)
                statistic = head * padded_rows + pad_row + first
                at = box(q_row, num_queries, first, head * D)
                if not PULLED:
                    load_box(q_desc, at, q_full, q.slot(loaded))
                tma.async_copy_global_to_shared(lse_desc, [statistic], q_full, lse_slots.index(loaded % q.depth))
                if not PULLED:
                    load_box(dout_desc, at, dout_full, dout.slot(loaded))
                tma.async_copy_global_to_shared(delta_desc, [statistic], dout_full, delta_slots.index(loaded % q.depth))
                if PULLED:
                    # one branch for both tiles, and last: otherwise registers spill
                    if gl.load(record + OTHER_ROW) >= stage_rows:
                        load_box(q_desc, at, q_full, q.slot(loaded))
                        load_box(dout_desc, at, dout_full, dout.slot(loaded))
                    else:
                        load_box(staged_q_desc, at, q_full, q.slot(loaded))
                        load_box(staged_dout_desc, at, dout_full, dout.slot(loaded))
                loaded += 1
        i += 1


@gluon.jit
def _step(
    c: gl.constexpr, i, dk, dv, k_tile, v_tile, q, dout, lse_slots, delta_slots, halves, record, seen_ptr, num_keys,
    first, is_masked, scale_log2, D: gl.constexpr, MASK: gl.constexpr,
):  # fmt: skip
    """Add query tile ``i``, the document's rows from ``first`` on, to dk and dv; with ``halves``, hand on its dq."""
    LS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_Q, 16])
    LP: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    dtype: gl.constexpr = q.slots.dtype
    zero = gl.zeros([HALF, BLOCK_Q], gl.float32, LS)
    q_tile, dout_tile = q.slot(i), dout.slot(i)
    q.await_full(i)
    lse = lse_slots.index(i % q.depth).load(gl.SliceLayout(0, LS))
    keys = k_tile.slice(c * HALF, HALF, dim=0)
    s_token = warpgroup_mma(keys, q_tile.permute((1, 0)), zero + lse[None, :], is_async=True)
    dout.await_full(i)
    delta = delta_slots.index(i % q.depth).load(gl.SliceLayout(0, LS))
    values = v_tile.slice(c * HALF, HALF, dim=0)
    dp_token = warpgroup_mma(values, dout_tile.permute((1, 0)), zero + delta[None, :], is_async=True)
    p = gl.exp2(warpgroup_mma_wait(1, deps=[s_token]) * scale_log2)
    if is_masked:
        query = first + gl.arange(0, BLOCK_Q, gl.SliceLayout(0, LS))
        own_key = c * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LS))
        p = gl.where(is_seen(query, own_key, record, seen_ptr, num_keys, MASK), p, 0.0)
    p16 = gl.convert_layout(p.to(dtype), LP)
    dv_token = warpgroup_mma(p16, dout_tile, dv, is_async=True)
    ds = (p * warpgroup_mma_wait(1, deps=[dp_token])).to(dtype)
    if halves is not None:
        ds_tile = halves.ds.index(i & 1)
        ds_tile.slice(c * HALF, HALF, dim=0).store(ds)
        fence_async_shared()
        mbarrier.arrive(halves.ds_full.index(i & 1), count=1)
    ds16 = gl.convert_layout(ds, LP)
    dk_token = warpgroup_mma(ds16, q_tile, dk, is_async=True)
    if halves is not None:
        LQ: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D // 2, 16])
        mbarrier.wait(halves.ds_full.index(i & 1), (i >> 1) & 1)
        columns = k_tile.slice(c * (D // 2), D // 2, dim=1)
        no_dq = gl.zeros([BLOCK_Q, D // 2], gl.float32, LQ)
        dq_token = warpgroup_mma(ds_tile.permute((1, 0)), columns, no_dq, use_acc=False, is_async=True)
        dv, p16, dk, ds16 = warpgroup_mma_wait(1, deps=[dv_token, p16, dk_token, ds16])
        q.release(i)
        dq = warpgroup_mma_wait(0, deps=[dq_token])
        mbarrier.wait(halves.dq_empty.index(c), (i & 1) ^ 1)
        halves.dq.index(c).store(dq)
        fence_async_shared()
        mbarrier.arrive(halves.dq_full.index(c), count=1)
    else:
        dv, p16, dk, ds16 = warpgroup_mma_wait(0, deps=[dv_token, p16, dk_token, ds16])
        q.release(i)
    return dk, dv


@gluon.jit
def _consume(
    c: gl.constexpr, schedule, dkv_ptr, seen_ptr, q, dout, k, v, lse_slots, delta_slots, halves, num_keys, scale_log2,
    GROUP: gl.constexpr, D: gl.constexpr, MASK: gl.constexpr,
):  # fmt: skip
    LA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    used = 0
    i = 0
    while schedule.has(i):
        kv_head, record = schedule.item(i)
        dk = gl.zeros([HALF, D], gl.float32, LA)
        dv = gl.zeros([HALF, D], gl.float32, LA)
        k.await_full(i)
        v.await_full(i)
        k_tile, v_tile = k.slot(i), v.slot(i)
        end = used + GROUP * gl.load(record + COUNT)
        for t in range(used, end):
            # what masks and dq need is read again in every step: registers are what this kernel lacks
            count = gl.load(record + COUNT)
            step = t - end + GROUP * count
            member = step // count if GROUP > 1 else 0
            step -= member * count
            # a causal diagonal crosses the key tile's first two query tiles
            is_masked = step < (BLOCK_K // BLOCK_Q if MASK == CAUSAL else gl.load(record + NEAR))
            if MASK == RANGES:
                is_masked |= count - step <= gl.load(record + FAR)
            first = (gl.load(record + START) + step) * BLOCK_Q
            dk, dv = _step(c, t, dk, dv, k_tile, v_tile, q, dout, lse_slots, delta_slots, halves, record, seen_ptr,
                           num_keys, first, is_masked, scale_log2, D, MASK)  # fmt: skip
        used = end
        k.release(i)
        v.release(i)
        first_row, own_rows = gl.load(record + ROW), gl.load(record + NUM_ROWS)
        row = c * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LA))
        columns = kv_head * D + gl.arange(0, D, gl.SliceLayout(0, LA))
        dtype: gl.constexpr = dkv_ptr.dtype.element_ty
        for part in gl.static_range(2):
            rows = (part * num_keys + first_row + row).to(gl.int64)
            at = dkv_ptr + rows[:, None] * (schedule.heads * D) + columns[None, :]
            gradient = dk * (scale_log2 * LN2) if part == 0 else dv
            gl.store(at, gradient.to(dtype), mask=(row < own_rows)[:, None])
        i += 1


@gluon.jit
def _reduce_dq(schedule, dq_desc, halves, GROUP: gl.constexpr, D: gl.constexpr):
    """Add the consumers' halves of dq to memory: a warp of its own waits for TMA to have read them."""
    done = 0
    i = 0
    while schedule.has(i):
        kv_head, record = schedule.item(i)
        q_row, num_queries = gl.load(record + OTHER_ROW), gl.load(record + NUM_OTHER)
        start, count = gl.load(record + START), gl.load(record + COUNT)
        for member in range(GROUP):
            column = (kv_head * GROUP + member) * D
            for step in range(count):
                first = (start + step) * BLOCK_Q
                for c in gl.static_range(2):
                    mbarrier.wait(halves.dq_full.index(c), done & 1)
                    at = box(q_row, num_queries, first, column + c * (D // 2))
                    reduce_add(dq_desc, at, halves.dq.index(c).reshape(dq_desc.block_shape))
                for c in gl.static_range(2):
                    tma.store_wait(1 - c)
                    mbarrier.arrive(halves.dq_empty.index(c), count=1)
                done += 1
        i += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["padded_rows", "num_keys", "width", "stage_rows"])
def dkv_kernel(
    q_desc, dout_desc, k_desc, v_desc, lse_desc, delta_desc, dq_desc, dkv_ptr, seen_ptr, tiles_ptr,
    workers_ptr, staged_q_desc, staged_dout_desc, padded_rows, num_keys, width, stage_rows, scale_log2,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, MASK: gl.constexpr, WITH_DQ: gl.constexpr,
    PULLED: gl.constexpr,
):  # fmt: skip
    """dk and dv, ``[2, num_keys, KV_HEADS, D]``, of the dealt items; WITH_DQ adds unscaled dq to float32 memory.

    q, dout, k, v and dq are reached by ragged descriptors of ``[rows, heads * D]``; lse and delta hold
    -lse / scale and -delta, ``[heads, padded_rows]``, with -inf and 0 where there is no query. With PULLED, the first
    ``stage_rows`` queries are in a stage.
    """
    dtype: gl.constexpr = q_desc.dtype
    DEPTH: gl.constexpr = 2 if WITH_DQ else 4
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    q = make_ring(dtype, DEPTH, (BLOCK_Q, D), layout)
    dout = make_ring(dtype, DEPTH, (BLOCK_Q, D), layout, released_by=q)
    k = make_ring(dtype, 1, (BLOCK_K, D), layout)
    v = make_ring(dtype, 1, (BLOCK_K, D), layout)
    lse_slots = gl.allocate_shared_memory(gl.float32, [DEPTH, BLOCK_Q], lse_desc.layout)
    delta_slots = gl.allocate_shared_memory(gl.float32, [DEPTH, BLOCK_Q], delta_desc.layout)
    if WITH_DQ:
        halves = _make_halves(dtype, layout, D)
    fence_async_shared()
    schedule = schedule_of(workers_ptr, tiles_ptr, width, KV_HEADS)
    if WITH_DQ:
        gl.warp_specialize(
            [
                (_consume, (0, schedule, dkv_ptr, seen_ptr, q, dout, k, v, lse_slots, delta_slots, halves, num_keys,
                            scale_log2, GROUP, D, MASK)),
                (_consume, (1, schedule, dkv_ptr, seen_ptr, q, dout, k, v, lse_slots, delta_slots, halves, num_keys,
                            scale_log2, GROUP, D, MASK)),
                (_produce, (schedule, q_desc, dout_desc, k_desc, v_desc, staged_q_desc, staged_dout_desc, lse_desc,
                            delta_desc, q, dout, k, v, lse_slots, delta_slots, padded_rows, stage_rows, GROUP, D,
                            PULLED)),
                (_reduce_dq, (schedule, dq_desc, halves, GROUP, D)),
            ],
            [4, 1, 1],
            [240, 24, 24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (0, schedule, dkv_ptr, seen_ptr, q, dout, k, v, lse_slots, delta_slots, None, num_keys,
                            scale_log2, GROUP, D, MASK)),
                (_consume, (1, schedule, dkv_ptr, seen_ptr, q, dout, k, v, lse_slots, delta_slots, None, num_keys,
                            scale_log2, GROUP, D, MASK)),
                (_produce, (schedule, q_desc, dout_desc, k_desc, v_desc, staged_q_desc, staged_dout_desc, lse_desc,
                            delta_desc, q, dout, k, v, lse_slots, delta_slots, padded_rows, stage_rows, GROUP, D,
                            PULLED)),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
