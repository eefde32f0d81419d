"""What the Gluon kernels for Hopper share, and the only calls into Triton's private interfaces.

Importing this module is the check: it raises ImportError where this Triton lacks a call, and
:mod:`hetsched.kernels.attention.backends` then falls back to the portable kernels and says so.
"""

from functools import cache

import torch
from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.core import _aggregate

from hetsched.kernels.attention import work

if not hasattr(ir.builder, "create_async_tma_reduce") and not hasattr(
    getattr(gluon, "_runtime", None), "GluonJITFunction"
):
    raise ImportError("this Triton has neither TMA reductions nor Gluon")

aggregate = _aggregate
LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
ROW, NUM_ROWS = gl.constexpr(work.ROW), gl.constexpr(work.NUM_ROWS)
OTHER_ROW, NUM_OTHER, LOCAL = gl.constexpr(work.OTHER_ROW), gl.constexpr(work.NUM_OTHER), gl.constexpr(work.LOCAL)
START, COUNT = gl.constexpr(work.START), gl.constexpr(work.COUNT)
NEAR, FAR, PAD_ROW = gl.constexpr(work.NEAR), gl.constexpr(work.FAR), gl.constexpr(work.PAD_ROW)
NUM_COLUMNS = gl.constexpr(work.NUM_COLUMNS)
FULL, CAUSAL, RANGES = gl.constexpr(0), gl.constexpr(1), gl.constexpr(2)
_RAGGED = gl.constexpr(1 << 30)


def ragged_rows(x_TC: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A TMA descriptor of ``[rows, columns]`` boxes that are clipped at the end of any run of rows.

    Two leading dimensions whose strides cancel modulo 2^64 turn a box's distance from the end of its document
    into a coordinate that the hardware checks (the trick of triton.tools.ragged_tma): loads past the end give
    zeros, and stores and reductions go nowhere. Coordinates come from :func:`box`.
    """
    stride = x_TC.stride(0)
    shape = [0x7FFF0000, 0x7FFF0000, 1 << 30, x_TC.shape[1]]
    strides = [(1 << 34) - stride, stride, stride, 1]
    return TensorDescriptor(x_TC, shape, strides, [1, 1, rows, columns], _box_layout(x_TC.element_size()))


@cache
def _box_layout(element_bytes: int) -> gl.NVMMASharedLayout:
    # made once: checking one takes longer than the rest of a descriptor
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=element_bytes * 8, rank=4)


@gluon.jit
def box(first_row, num_rows, row, column):
    """Coordinates of the box at ``row`` of the run ``[first_row, first_row + num_rows)``."""
    return [_RAGGED, first_row + num_rows, _RAGGED - num_rows + row, column]


@gluon.jit
def load_box(descriptor, at, barrier, slot):
    """Copy a box into a 2-D slot of the same shape."""
    tma.async_copy_global_to_shared(descriptor, at, barrier, slot.reshape(descriptor.block_shape))


@builtin
def reduce_add(descriptor, at, slot, _semantic=None):
    """Add a slot to global memory by TMA. Gluon of Triton 3.6 has no public call for it."""
    coordinates = _semantic._convert_to_ir_values(at, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, coordinates, slot.handle)


@aggregate
class Ring:
    """Slots that a producer fills and consumers empty in turn; entry ``i`` lies in slot ``i % depth``."""

    slots: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    depth: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, slots, full, empty, depth):
        self.slots = slots
        self.full = full
        self.empty = empty
        self.depth = gl.constexpr(depth)

    @gluon.jit
    def slot(self, i):
        return self.slots.index(i % self.depth)

    @gluon.jit
    def await_empty(self, i, num_bytes: gl.constexpr):
        """Producer: wait for entry ``i``'s slot and announce its bytes; returns the barrier they arrive at."""
        mbarrier.wait(self.empty.index(i % self.depth), ((i // self.depth) & 1) ^ 1)
        return self.announce(i, num_bytes)

    @gluon.jit
    def announce(self, i, num_bytes: gl.constexpr):
        """Producer: announce the bytes of entry ``i``, whose slot is known to be empty."""
        barrier = self.full.index(i % self.depth)
        mbarrier.expect(barrier, num_bytes)
        return barrier

    @gluon.jit
    def await_full(self, i):
        """Consumer: wait for entry ``i``."""
        mbarrier.wait(self.full.index(i % self.depth), (i // self.depth) & 1)

    @gluon.jit
    def release(self, i):
        """Consumer: entry ``i`` has been read."""
        mbarrier.arrive(self.empty.index(i % self.depth), count=1)


@gluon.jit
def barriers(number: gl.constexpr, arrivals: gl.constexpr):
    """``number`` barriers, each for so many arrivals. Every one must be used by the kernel's warps.

    The memory of one that nobody uses serves other things as well, and the GPU still takes it for a barrier: where it
    stops the kernel, to let another process run, and goes on, it writes the barrier's state over them.
    """
    result = gl.allocate_shared_memory(gl.int64, [number, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(number):
        mbarrier.init(result.index(i), count=arrivals)
    return result


@gluon.jit
def make_ring(dtype: gl.constexpr, depth: gl.constexpr, shape: gl.constexpr, layout: gl.constexpr, released_by=None):
    """A ring of ``depth`` slots for one producer and two consumers; it may have its entries released by another's."""
    slots = gl.allocate_shared_memory(dtype, [depth, shape[0], shape[1]], layout)
    full = barriers(depth, 1)
    empty = barriers(depth, 2) if released_by is None else released_by.empty
    return Ring(slots, full, empty, depth)


@aggregate
class Schedule:
    """The items dealt to this program, how many and which, and the records of their tiles."""

    items: gl.tensor
    tiles: gl.tensor
    heads: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, items, tiles, heads):
        self.items = items
        self.tiles = tiles
        self.heads = gl.constexpr(heads)

    @gluon.jit
    def has(self, i):
        """Whether there is an item ``i``; read again every time, because registers are scarce."""
        return i < gl.load(self.items)

    @gluon.jit
    def item(self, i):
        """The head of item ``i`` and the address of its tile's record."""
        item = gl.load(self.items + 1 + i)
        return item % self.heads, self.tiles + (item // self.heads) * NUM_COLUMNS


@gluon.jit
def schedule_of(workers_ptr, tiles_ptr, width, HEADS: gl.constexpr):
    """The schedule of this program."""
    return Schedule(workers_ptr + gl.program_id(0) * width, tiles_ptr, HEADS)


@gluon.jit
def visit(step, start, count, near, far, STEP: gl.constexpr, MASK: gl.constexpr):
    """Index of the tile visited at a step: masked ones from the near end, then from the far end, then the rest."""
    tile = start + STEP * step
    if MASK == RANGES:
        from_far = start + STEP * (count - 1 - (step - near))
        later = gl.where(step < near + far, from_far, tile - STEP * far)
        tile = gl.where(step < near, tile, later)
    return tile


@gluon.jit
def query_bounds(lo_ptr, hi_ptr, first_row, own_rows, local, row, num_keys, MASK: gl.constexpr):
    """The interval of keys that rows ``row`` of a query tile see.

    Only RANGES empties rows past the tile's end: in the other kinds they are zeros that nobody stores.
    """
    if MASK == RANGES:
        lo = gl.load(lo_ptr + first_row + row, mask=row < own_rows, other=0)
        hi = gl.load(hi_ptr + first_row + row, mask=row < own_rows, other=0)
    else:
        lo = row * 0
        hi = local + row + 1 if MASK == CAUSAL else lo + num_keys
    return lo, hi


@gluon.jit
def is_seen(query, row, record, seen_ptr, num_keys, MASK: gl.constexpr):
    """Which of the query rows ``query`` see which rows ``row`` of the key tile of ``record``: ``[keys, queries]``.

    ``seen_ptr`` holds the first queries that see each of ``num_keys`` key rows, then the ends. Rows past the
    document's end are zeros; hiding them keeps their probabilities finite.
    """
    own_rows = gl.load(record + NUM_ROWS)
    if MASK == RANGES:
        key = gl.load(record + ROW) + row
        first = gl.load(seen_ptr + key, mask=row < own_rows, other=0)
        stop = gl.load(seen_ptr + num_keys + key, mask=row < own_rows, other=0)
        result = (query[None, :] >= first[:, None]) & (query[None, :] < stop[:, None])
    elif MASK == CAUSAL:
        result = query[None, :] >= (gl.load(record + LOCAL) + row)[:, None]
    else:
        result = (query[None, :] >= 0) & (row < own_rows)[:, None]
    return result
