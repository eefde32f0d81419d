"""How Hopper kernels wait, tile by tile, for keys and values that copies bring while they run.

A counter in the GPU's memory says how many copies have landed. The stage that they land in has one part after the
other, few heads in each; see :mod:`hetsched.kernels.attention.staging`. Documents that are whole here stay out of it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from hetsched.kernels.attention.hopper_support import load_box


@gluon.jit
def place_of(row, head, part_rows, PULLED: gl.constexpr, D: gl.constexpr):
    """Whether a run of rows stays where it was made, and its part, first row and column for one head.

    Rows from ``part_rows`` on are those that stay, behind those of a part of the stage with PULLED heads.
    """
    is_own = row >= part_rows
    part = 0
    column = head * D
    if PULLED:
        part = gl.where(is_own, 0, head // PULLED)
        row += gl.where(is_own, -part_rows, part * part_rows)
        column -= part * PULLED * D
    return is_own, part, row, column


@gluon.jit
def load_either(is_own, own_desc, staged_desc, at, barrier, slot, PULLED: gl.constexpr):
    """Copy a box from the stage, or from rows that stay."""
    if PULLED:
        if is_own:
            load_box(own_desc, at, barrier, slot)
        else:
            load_box(staged_desc, at, barrier, slot)
    else:
        load_box(own_desc, at, barrier, slot)


@gluon.jit
def await_tile(needs_ptr, counter_ptr, lost_ptr, landed, here, part, tile, stage_tiles):
    """How many copies have landed, once all those have that a tile needs; ``here`` had before. Own rows need none."""
    if tile < stage_tiles:
        needs = needs_ptr + tile * 2
        need = gl.load(needs) + part * gl.load(needs + 1)
        if need > here:
            here = _await_copies(counter_ptr, landed + need) - landed
            if here < need:
                gl.store(lost_ptr, 1)
                here = 1 << 30
    return here


@gluon.jit
def _await_copies(counter_ptr, value):
    """The counter once it has reached ``value`` (it may wrap around), or after some seconds.

    What the copies wrote is then visible to every thread of the warp, and to TMA, which needs a fence of its own.
    """
    return gl.inline_asm_elementwise(
        """
        {
        .reg .pred p;
        .reg .u32 i;
        .reg .s32 ahead;
        mov.u32 i, 0;
        AWAIT:
        ld.acquire.sys.global.s32 $0, [$1];
        sub.s32 ahead, $0, $2;
        setp.ge.s32 p, ahead, 0;
        @p bra ARRIVED;
        add.u32 i, i, 1;
        setp.gt.u32 p, i, 4000000;
        @p bra ARRIVED;
        nanosleep.u32 64;
        bra AWAIT;
        ARRIVED:
        fence.proxy.async;
        }
        """,
        "=&r,l,r",
        [counter_ptr.to(gl.int64), value],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )
