"""Forward for Hopper in Gluon: one producer warp, two consumer warpgroups of 64 query rows, persistent programs.

Each program works through its dealt (query tile, head) items. The producer keeps two K and two V tiles in flight by
TMA; a consumer issues the scores of the next key tile before it multiplies the probabilities of the last with V, so
that softmax hides under the tensor cores (FlashAttention-3, arXiv 2407.08608, section 3). Masked tiles come first:
the long loop has no mask.

With PULLED, keys may still be on their way when the kernel starts: the producer waits until as many copies have landed
as a tile needs, and the consumers do not know.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from hetsched.kernels.attention.hopper_arrival import await_tile, load_either, place_of
from hetsched.kernels.attention.hopper_support import (
    COUNT,
    FAR,
    LN2,
    LOCAL,
    LOG2E,
    NEAR,
    NUM_OTHER,
    NUM_ROWS,
    OTHER_ROW,
    RANGES,
    ROW,
    START,
    box,
    load_box,
    make_ring,
    query_bounds,
    schedule_of,
    visit,
)

BLOCK_Q = gl.constexpr(128)
BLOCK_K = gl.constexpr(128)
HALF = gl.constexpr(64)


@gluon.jit
def _produce(
    schedule, q_desc, k_desc, v_desc, staged_k_desc, staged_v_desc, q, k, v, needs_ptr, counter_ptr, lost_ptr, landed,
    part_rows, GROUP: gl.constexpr, D: gl.constexpr, MASK: gl.constexpr, PULLED: gl.constexpr,
):  # fmt: skip
    loaded = 0
    here = 0
    i = 0
    while schedule.has(i):
        head, record = schedule.item(i)
        first_row, own_rows = gl.load(record + ROW), gl.load(record + NUM_ROWS)
        key_row, num_keys = gl.load(record + OTHER_ROW), gl.load(record + NUM_OTHER)
        start, count = gl.load(record + START), gl.load(record + COUNT)
        near, far = gl.load(record + NEAR), gl.load(record + FAR)
        at = box(first_row, own_rows, 0, head * D)
        load_box(q_desc, at, q.await_empty(i, BLOCK_Q * D * 2), q.slot(i))
        is_own, part, place, column = place_of(key_row, head // GROUP, part_rows, PULLED, D)
        for step in range(count):
            tile = visit(step, start, count, near, far, -1, MASK)
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
def _soften(s, m, total, scale_log2, GUARD: gl.constexpr):
    """One online-softmax step: probabilities, new maxima and sums, and the factor that old sums shrink by."""
    new_m = gl.maximum(m, gl.max(s, 1) * scale_log2)
    base = new_m
    if GUARD:
        # a row that has seen no key keeps m = -inf, and its exponents must not become -inf - (-inf)
        base = gl.where(new_m == float("-inf"), 0.0, new_m)
    p = gl.exp2(s * scale_log2 - base[:, None])
    shrink = gl.exp2(m - base)
    return p, new_m, total * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _hide(s, lo, hi, first_key, column):
    key = (first_key + column)[None, :]
    return gl.where((key >= lo[:, None]) & (key < hi[:, None]), s, float("-inf"))


@gluon.jit
def _advance(q, k, v, i, p, acc, m, total, scale_log2, lo, hi, first_key, column, MASKED: gl.constexpr):
    """Scores of key tile ``i`` while the probabilities ``p`` of tile ``i - 1`` meet its values."""
    LO: gl.constexpr = acc.type.layout
    LS: gl.constexpr = column.type.layout.parent
    k.await_full(i)
    zero = gl.zeros([HALF, BLOCK_K], gl.float32, LS)
    s_token = warpgroup_mma(q, k.slot(i).permute((1, 0)), zero, use_acc=False, is_async=True)
    v.await_full(i - 1)
    acc_token = warpgroup_mma(p, v.slot(i - 1), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s_token])
    k.release(i)
    if MASKED:
        s = _hide(s, lo, hi, first_key, column)
    p32, m, total, shrink = _soften(s, m, total, scale_log2, MASKED)
    acc, p = warpgroup_mma_wait(0, deps=[acc_token, p])
    v.release(i - 1)
    acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, LO))[:, None]
    p = gl.convert_layout(p32.to(p.dtype), gl.DotOperandLayout(0, LO, 2))
    return p, acc, m, total


@gluon.jit
def _consume(
    c: gl.constexpr, schedule, out_desc, out_ptr, lse_ptr, lo_ptr, hi_ptr, q, k, v, out_slots, num_rows, scale_log2,
    D: gl.constexpr, MASK: gl.constexpr, CARRY: gl.constexpr,
):  # fmt: skip
    LS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_K, 16])
    LO: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row = c * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LS))
    column = gl.arange(0, BLOCK_K, gl.SliceLayout(0, LS))
    dtype: gl.constexpr = q.slots.dtype
    used = 0
    i = 0
    while schedule.has(i):
        head, record = schedule.item(i)
        first_row, own_rows, local = gl.load(record + ROW), gl.load(record + NUM_ROWS), gl.load(record + LOCAL)
        start, count, num_keys = gl.load(record + START), gl.load(record + COUNT), gl.load(record + NUM_OTHER)
        near, far = gl.load(record + NEAR), gl.load(record + FAR)
        lo, hi = query_bounds(lo_ptr, hi_ptr, first_row, own_rows, local, row, num_keys, MASK)
        queries = q.slot(i).slice(c * HALF, HALF, dim=0)
        q.await_full(i)
        k.await_full(used)
        zero = gl.zeros([HALF, BLOCK_K], gl.float32, LS)
        s_token = warpgroup_mma(queries, k.slot(used).permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s_token])
        k.release(used)
        s = _hide(s, lo, hi, visit(0, start, count, near, far, -1, MASK) * BLOCK_K, column)
        m = gl.full([HALF], float("-inf"), gl.float32, gl.SliceLayout(1, LS))
        total = gl.zeros([HALF], gl.float32, gl.SliceLayout(1, LS))
        p32, m, total, _ = _soften(s, m, total, scale_log2, MASK == RANGES)
        p = gl.convert_layout(p32.to(dtype), gl.DotOperandLayout(0, LO, 2))
        acc = gl.zeros([HALF, D], gl.float32, LO)
        masked = 1
        if MASK == RANGES:
            masked = gl.maximum(near + far, 1)
            for step in range(1, masked):
                first_key = visit(step, start, count, near, far, -1, MASK) * BLOCK_K
                p, acc, m, total = _advance(
                    queries, k, v, used + step, p, acc, m, total, scale_log2, lo, hi, first_key, column, True
                )
        for step in range(masked, count):
            p, acc, m, total = _advance(
                queries, k, v, used + step, p, acc, m, total, scale_log2, lo, hi, 0, column, False
            )
        q.release(i)
        used += count
        v.await_full(used - 1)
        if CARRY:
            _finish_carried(c, p, v, used - 1, acc, m, total, out_ptr, lse_ptr, head, first_row, own_rows, num_rows,
                            row, schedule.heads, D)  # fmt: skip
        else:
            acc_token = warpgroup_mma(p, v.slot(used - 1), acc, is_async=True)
            acc, p = warpgroup_mma_wait(0, deps=[acc_token, p])
            v.release(used - 1)
            if MASK == RANGES:
                total = gl.where(total > 0, total, 1.0)
            acc = acc * (1.0 / gl.convert_layout(total, gl.SliceLayout(1, LO)))[:, None]
            lse_ptrs = lse_ptr + head.to(gl.int64) * num_rows + first_row + row
            gl.store(lse_ptrs, (m + gl.log2(total)) * LN2, mask=row < own_rows)
            _store_box(c, out_desc, out_slots, acc.to(dtype), first_row, own_rows, head * D)
        i += 1
    if not CARRY:
        tma.store_wait(0)


@gluon.jit
def _store_box(c: gl.constexpr, out_desc, out_slots, out, first_row, own_rows, column):
    tma.store_wait(0)
    gl.thread_barrier()
    out_slots.index(c).store(out)
    fence_async_shared()
    gl.thread_barrier()
    at = box(first_row, own_rows, c * HALF, column)
    tma.async_copy_shared_to_global(out_desc, at, out_slots.index(c).reshape(out_desc.block_shape))


@gluon.jit
def _finish_carried(
    c: gl.constexpr, p, v, last, acc, m, total, out_ptr, lse_ptr, head, first_row, own_rows, num_rows, row,
    HEADS: gl.constexpr, D: gl.constexpr,
):  # fmt: skip
    """Continue the carried (output, lse) by these keys. The carried rows load while the last product runs."""
    LO: gl.constexpr = acc.type.layout
    out_row = c * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LO))
    rows = (first_row + out_row).to(gl.int64)[:, None]
    out_ptrs = out_ptr + rows * (HEADS * D) + head * D + gl.arange(0, D, gl.SliceLayout(0, LO))[None, :]
    lse_ptrs = lse_ptr + head.to(gl.int64) * num_rows + first_row + row
    is_value, is_row = (out_row < own_rows)[:, None], row < own_rows
    carried = gl.load(out_ptrs, mask=is_value, other=0.0)
    carried_m = gl.load(lse_ptrs, mask=is_row, other=0.0) * LOG2E
    acc_token = warpgroup_mma(p, v.slot(last), acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=[acc_token, p])
    v.release(last)
    new_m = gl.maximum(m, carried_m)
    base = gl.where(new_m == float("-inf"), 0.0, new_m)
    own, other = gl.exp2(m - base), gl.exp2(carried_m - base)
    total = total * own + other
    total = gl.where(total > 0, total, 1.0)
    own, other = (
        gl.convert_layout(own / total, gl.SliceLayout(1, LO)),
        gl.convert_layout(other / total, gl.SliceLayout(1, LO)),
    )
    gl.store(out_ptrs, acc * own[:, None] + carried * other[:, None], mask=is_value)
    gl.store(lse_ptrs, (new_m + gl.log2(total)) * LN2, mask=is_row)


@gluon.jit(do_not_specialize=["num_rows", "width", "landed", "part_rows"])
def forward_kernel(
    q_desc, k_desc, v_desc, out_desc, out_ptr, lse_ptr, lo_ptr, hi_ptr, tiles_ptr, workers_ptr, staged_k_desc,
    staged_v_desc, needs_ptr, counter_ptr, lost_ptr, num_rows, width, landed, part_rows, scale_log2,
    HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, MASK: gl.constexpr, CARRY: gl.constexpr,
    PULLED: gl.constexpr,
):  # fmt: skip
    """Output and lse of the items dealt to this program; with CARRY float32 output and lse are continued in place.

    q, k, v and out are reached by ragged descriptors of ``[rows, heads * D]``; lse is ``[HEADS, num_rows]``. Unless
    PULLED is 0, the keys of some documents are in a :class:`hetsched.kernels.attention.staging.Staged`.
    """
    dtype: gl.constexpr = q_desc.dtype
    layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    q = make_ring(dtype, 1, (BLOCK_Q, D), layout)
    k = make_ring(dtype, 2, (BLOCK_K, D), layout)
    v = make_ring(dtype, 2, (BLOCK_K, D), layout)
    out_slots = gl.allocate_shared_memory(dtype, [2, HALF, D], layout)
    fence_async_shared()
    schedule = schedule_of(workers_ptr, tiles_ptr, width, HEADS)
    gl.warp_specialize(
        [
            (_consume, (0, schedule, out_desc, out_ptr, lse_ptr, lo_ptr, hi_ptr, q, k, v, out_slots, num_rows,
                        scale_log2, D, MASK, CARRY)),
            (_consume, (1, schedule, out_desc, out_ptr, lse_ptr, lo_ptr, hi_ptr, q, k, v, out_slots, num_rows,
                        scale_log2, D, MASK, CARRY)),
            (_produce, (schedule, q_desc, k_desc, v_desc, staged_k_desc, staged_v_desc, q, k, v, needs_ptr, counter_ptr,
                        lost_ptr, landed, part_rows, GROUP, D, MASK, PULLED)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
