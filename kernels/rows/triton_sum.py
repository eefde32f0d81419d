"""The table's gradient in Triton: a sorted, deterministic sum of gradient rows by id.

Positions come sorted by id, so that each table row's gradient is a run of places of the order. A run is cut at
every SPAN places into pieces, so that the work is even however skewed the ids are: a program sums a piece in
registers and, if the piece is a whole run, as nearly all are, writes the table row. The other pieces leave float32
partial sums, and a second kernel adds these in the order of places. There are no atomics.
Shapes: T tokens, V table rows, H hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hetsched.kernels.rows.faults import Fault, fault_record
from hetsched.kernels.rows.triton import report_any, with_unit_columns

SPAN = 32
"""Places at which runs are cut."""
GROUP = 4
"""Rows of a run that a program has in flight at once."""
MAX_REGISTERS = 48
"""Of a thread that sums pieces; more would leave room for fewer programs, and so for fewer rows on their way."""
CHAIN = 16
"""Partial sums that are in flight at once."""
NUM_PROGRAMS = 132 * 128 - 1
"""Programs of a launch at most; each takes every NUM_PROGRAMS-th place, so that idle places cost no launch.
Odd, so that no program meets the places where long runs are cut more often than another."""
NUM_CHAINS = 132 * 16 - 1
"""The same for the sums of partial sums."""

_NO_ROW = tl.constexpr(-1)
_LAST = tl.constexpr(2**62)


@triton.jit
def _load_sort_key(p, order, ids, slot, num_tokens):
    """Position at place p of the order, and the key that the order sorts by: the id, modality rows last."""
    position = tl.load(order + p, mask=(p >= 0) & (p < num_tokens), other=-1).to(tl.int64)
    is_token = (position >= 0) & (position < num_tokens)
    key = tl.load(ids + position, mask=is_token, other=0).to(tl.int64)
    if slot is not None:
        key = tl.where(tl.load(slot + position, mask=is_token, other=-1) < 0, key, _LAST)
    return position, key, is_token


@triton.jit
def _has_row(key, vocab_start, num_rows):
    """Whether an id is in the table; an id of -1 is in none, even where the table starts at -1 or below."""
    return (key >= 0) & (key != _LAST) & (key >= vocab_start) & (key - vocab_start < num_rows)


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "vocab_start"])
def _sort_rows_kernel(
    ids,
    slot,
    order,
    sorted_rows,
    bounds,
    record,
    num_tokens,
    num_rows,
    vocab_start,
    FAULT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Table row of each place, ``_NO_ROW`` where there is none, and the bounds of those that have one.

    Sorted ids of one table are neighbors, so one place each writes the two bounds. Checks that the order is one.
    """
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_live = p < num_tokens
    position, key, is_token = _load_sort_key(p, order, ids, slot, num_tokens)
    next_position, next_key, _ = _load_sort_key(p + 1, order, ids, slot, num_tokens)
    _, last_key, _ = _load_sort_key(p - 1, order, ids, slot, num_tokens)
    is_sorted = (key < next_key) | ((key == next_key) & (position < next_position)) | (p + 1 >= num_tokens)
    report_any(record, FAULT, is_live & ~(is_token & is_sorted), p, position, num_tokens, num_tokens)
    has_row = is_token & _has_row(key, vocab_start, num_rows)
    tl.store(sorted_rows + p, tl.where(has_row, key - vocab_start, _NO_ROW).to(tl.int32), mask=is_live)
    is_first = has_row & ~((p > 0) & _has_row(last_key, vocab_start, num_rows))
    is_last = has_row & ~((p + 1 < num_tokens) & _has_row(next_key, vocab_start, num_rows))
    zero = tl.zeros([BLOCK], tl.int32)
    tl.store(bounds + zero, p, mask=is_first)
    tl.store(bounds + 1 + zero, p + 1, mask=is_last)


@triton.jit
def _row_at(sorted_rows, p, num_tokens):
    return tl.load(sorted_rows + p, mask=(p >= 0) & (p < num_tokens), other=_NO_ROW)


@triton.jit
def _sum_rest(
    grad,
    order,
    sorted_rows,
    end,
    row,
    span_end,
    total,
    num_tokens,
    grad_stride,
    col,
    is_col,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Adds to ``total`` the rows of a piece from place ``end`` on, in their order; also whether its run goes on."""
    # Its length is known after one access; looking place by place would wait for memory in every step.
    places = end + tl.arange(0, SPAN)
    is_same = (_row_at(sorted_rows, places, num_tokens) == row) & (places < span_end)
    stop = end + tl.sum(is_same.to(tl.int32), axis=0)
    while end < stop:
        for i in tl.static_range(GROUP):
            is_here = end + i < stop
            position = tl.load(order + end + i, mask=is_here, other=0).to(tl.int64)
            part = tl.load(grad + position * grad_stride + col, mask=is_here & is_col, other=0.0)
            total += part.to(total.dtype)
        end += GROUP
    return total, _row_at(sorted_rows, stop, num_tokens) == row


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_pieces_kernel(
    grad,
    order,
    sorted_rows,
    bounds,
    out,
    partials,
    num_tokens,
    hidden,
    grad_stride,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    COLS: tl.constexpr,
):
    """A run of one piece goes to ``out``. Of the others, ``partials[2s]`` is the piece of a run that began before
    span s, and ``partials[2s + 1]`` that of one which begins in it and goes on.
    """
    num_col_blocks = tl.cdiv(hidden, COLS)
    begin = tl.load(bounds)
    # Bounds that nobody wrote, as no place has a row, are anything.
    num_items = tl.minimum(tl.load(bounds + 1) - begin, num_tokens) * num_col_blocks
    item = tl.program_id(0)
    wide: tl.constexpr = partials.dtype.element_ty
    while item < num_items:
        place = begin + item // num_col_blocks
        # All that one place needs is asked for at once, and the gradient's row right after it.
        row = _row_at(sorted_rows, place, num_tokens)
        is_from_before = _row_at(sorted_rows, place - 1, num_tokens) == row
        goes_on = _row_at(sorted_rows, place + 1, num_tokens) == row
        position = tl.load(order + place, mask=(place >= 0) & (place < num_tokens), other=0).to(tl.int64)
        span = place // SPAN
        if (row != _NO_ROW) & ((place == span * SPAN) | ~is_from_before):
            col = (item % num_col_blocks) * COLS + tl.arange(0, COLS)
            is_col = col < hidden
            total = tl.load(grad + position * grad_stride + col, mask=is_col, other=0.0).to(wide)
            span_end = (span + 1) * SPAN
            if goes_on & (place + 1 < span_end):
                total, goes_on = _sum_rest(
                    grad,
                    order,
                    sorted_rows,
                    place + 1,
                    row,
                    span_end,
                    total,
                    num_tokens,
                    grad_stride,
                    col,
                    is_col,
                    SPAN,
                    GROUP,
                )
            if is_from_before | goes_on:
                which = 2 * span.to(tl.int64) + tl.where(is_from_before, 0, 1)
                tl.store(partials + which * hidden + col, total, mask=is_col)
            else:
                tl.store(out + row.to(tl.int64) * hidden + col, total.to(out.dtype.element_ty), mask=is_col)
        item += tl.num_programs(0)


@triton.jit
def _sum_chain(
    sorted_rows, out, partials, span, row, num_tokens, hidden, col, is_col, SPAN: tl.constexpr, CHAIN: tl.constexpr
):
    """Writes the sum of the run that begins in ``span`` and goes on, in the order of spans."""
    total = tl.load(partials + (2 * span.to(tl.int64) + 1) * hidden + col, mask=is_col, other=0.0)
    first = span + 1
    is_more = True
    while is_more:
        spans = first + tl.arange(0, CHAIN)
        is_here = _row_at(sorted_rows, spans * SPAN, num_tokens) == row
        source = partials + 2 * spans.to(tl.int64)[:, None] * hidden + col[None, :]
        total += tl.sum(tl.load(source, mask=is_here[:, None] & is_col[None, :], other=0.0), axis=0)
        first += CHAIN
        is_more = tl.min(is_here.to(tl.int32), axis=0) == 1
    tl.store(out + row.to(tl.int64) * hidden + col, total.to(out.dtype.element_ty), mask=is_col)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_partials_kernel(
    sorted_rows, bounds, out, partials, num_tokens, hidden, SPAN: tl.constexpr, CHAIN: tl.constexpr, COLS: tl.constexpr
):
    """Adds the partial sums of every run that was cut; a run belongs to the span in which it begins."""
    num_col_blocks = tl.cdiv(hidden, COLS)
    first_span = tl.load(bounds) // SPAN
    num_spans = (tl.load(bounds + 1) - 1) // SPAN - first_span
    num_items = tl.minimum(num_spans, num_tokens // SPAN) * num_col_blocks
    item = tl.program_id(0)
    while item < num_items:
        span = first_span + item // num_col_blocks
        row = _row_at(sorted_rows, (span + 1) * SPAN, num_tokens)
        last = _row_at(sorted_rows, (span + 1) * SPAN - 1, num_tokens)
        start = _row_at(sorted_rows, span * SPAN, num_tokens)
        before = _row_at(sorted_rows, span * SPAN - 1, num_tokens)
        if (row != _NO_ROW) & (row == last) & ~((row == start) & (row == before)):
            col = (item % num_col_blocks) * COLS + tl.arange(0, COLS)
            _sum_chain(sorted_rows, out, partials, span, row, num_tokens, hidden, col, col < hidden, SPAN, CHAIN)
        item += tl.num_programs(0)


def sum_cols(hidden: int, itemsize: int) -> int:
    """Columns of one program: two accesses of 16 bytes a thread."""
    cols: int = min(triton.next_power_of_2(hidden), 4096 // itemsize)
    return cols


def num_warps(cols: int, itemsize: int) -> int:
    """Warps of one program; narrow programs are small ones, so that as many bytes are on their way."""
    return max(1, cols * itemsize // 1024)


def _sort_rows(
    ids: Tensor, slot: Tensor | None, order: Tensor, *, num_rows: int, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """Table row of each place, int32 ``[T]``, and the bounds of the places that have one, int32 ``[2]``, if any has."""
    num_tokens = order.shape[0]
    sorted_rows = torch.empty(num_tokens, dtype=torch.int32, device=ids.device)
    bounds = torch.empty(2, dtype=torch.int32, device=ids.device)
    block = 256
    _sort_rows_kernel[(triton.cdiv(num_tokens, block),)](
        ids,
        slot,
        order,
        sorted_rows,
        bounds,
        fault_record(ids.device),
        num_tokens,
        num_rows,
        vocab_start,
        FAULT=int(Fault.ORDER_UNSORTED),
        BLOCK=block,
        num_warps=4,
    )
    return sorted_rows, bounds


def sum_rows_into(
    out: Tensor, grad: Tensor, ids: Tensor, slot: Tensor | None, order: Tensor, *, vocab_start: int
) -> Tensor:
    """Writes each table row that a text position names, and leaves the others of ``out`` as they are.

    Args:
        out: ``[V, H]``, contiguous.
        grad: ``[T, H]``, any row stride.
        ids: ``[T]``.
        slot: ``[T]`` or None; positions with a slot are no text.
        order: ``[T]``, what ``naive.text_order`` gives; a wrong one goes to the fault record.
        vocab_start: id of the first row of ``out``.

    Returns:
        ``out``.
    """
    num_tokens, hidden = grad.shape
    if num_tokens == 0 or hidden == 0:
        return out
    grad = with_unit_columns(grad)
    ids, order = ids.contiguous(), order.contiguous()
    slot = None if slot is None else slot.contiguous()
    sorted_rows, bounds = _sort_rows(ids, slot, order, num_rows=out.shape[0], vocab_start=vocab_start)
    num_spans = triton.cdiv(num_tokens, SPAN)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    partials = torch.empty(2 * num_spans, hidden, dtype=wide, device=grad.device)
    cols = sum_cols(hidden, grad.element_size())
    num_col_blocks = triton.cdiv(hidden, cols)
    _sum_pieces_kernel[(min(num_tokens * num_col_blocks, NUM_PROGRAMS),)](
        grad,
        order,
        sorted_rows,
        bounds,
        out,
        partials,
        num_tokens,
        hidden,
        grad.stride(0),
        SPAN=SPAN,
        GROUP=GROUP,
        COLS=cols,
        num_warps=num_warps(cols, grad.element_size()),
        maxnreg=MAX_REGISTERS,
    )
    if num_spans > 1:
        # A chain of partial sums is read by few programs: narrow ones are more.
        cols = min(cols, 512)
        _sum_partials_kernel[(min((num_spans - 1) * triton.cdiv(hidden, cols), NUM_CHAINS),)](
            sorted_rows, bounds, out, partials, num_tokens, hidden, SPAN=SPAN, CHAIN=CHAIN, COLS=cols, num_warps=4
        )
    return out
