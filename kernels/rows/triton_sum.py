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

SPAN = 64
"""Places at which runs are cut."""
GROUP = 4
"""Rows of a run that a program has in flight at once."""
CHAIN = 16
"""Partial sums that are in flight at once."""
NUM_PROGRAMS = 132 * 128 - 1
"""Programs of a launch at most; each takes every NUM_PROGRAMS-th place, so that idle places cost no launch.
Odd, so that no program meets the places where long runs are cut more often than another."""

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
def _sum_piece(
    grad,
    order,
    sorted_rows,
    place,
    row,
    span_end,
    num_tokens,
    grad_stride,
    col,
    is_col,
    wide: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Sum of the piece that begins at ``place``, in the order of places, and whether its run goes on behind it."""
    position = tl.load(order + place).to(tl.int64)
    total = tl.load(grad + position * grad_stride + col, mask=is_col, other=0.0).to(wide)
    end = place + 1
    following = _row_at(sorted_rows, end, num_tokens)
    while (following == row) & (end < span_end):
        for i in tl.static_range(GROUP):
            is_here = (_row_at(sorted_rows, end + i, num_tokens) == row) & (end + i < span_end)
            position = tl.load(order + end + i, mask=is_here, other=0).to(tl.int64)
            total += tl.load(grad + position * grad_stride + col, mask=is_here & is_col, other=0.0).to(wide)
        end = tl.minimum(end + GROUP, span_end)
        following = _row_at(sorted_rows, end, num_tokens)
    return total, following == row


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
    num_items = (tl.load(bounds + 1) - begin) * num_col_blocks
    item = tl.program_id(0)
    wide: tl.constexpr = partials.dtype.element_ty
    while item < num_items:
        place = begin + item // num_col_blocks
        row = _row_at(sorted_rows, place, num_tokens)
        is_from_before = _row_at(sorted_rows, place - 1, num_tokens) == row
        span = place // SPAN
        if (row != _NO_ROW) & ((place == span * SPAN) | ~is_from_before):
            col = (item % num_col_blocks) * COLS + tl.arange(0, COLS)
            is_col = col < hidden
            span_end = (span + 1) * SPAN
            total, goes_on = _sum_piece(
                grad, order, sorted_rows, place, row, span_end, num_tokens, grad_stride, col, is_col, wide, GROUP
            )
            if is_from_before | goes_on:
                which = 2 * span.to(tl.int64) + tl.where(is_from_before, 0, 1)
                tl.store(partials + which * hidden + col, total, mask=is_col)
            else:
                tl.store(out + row.to(tl.int64) * hidden + col, total.to(out.dtype.element_ty), mask=is_col)
        item += tl.num_programs(0)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_partials_kernel(
    sorted_rows, out, partials, num_tokens, hidden, SPAN: tl.constexpr, CHAIN: tl.constexpr, COLS: tl.constexpr
):
    """Adds the partial sums of the run that begins in a span and goes on, in the order of spans."""
    num_col_blocks = tl.cdiv(hidden, COLS)
    span = tl.program_id(0) // num_col_blocks
    row = _row_at(sorted_rows, (span + 1) * SPAN, num_tokens)
    if (row != _NO_ROW) & (row == _row_at(sorted_rows, (span + 1) * SPAN - 1, num_tokens)):
        is_from_before = (row == _row_at(sorted_rows, span * SPAN, num_tokens)) & (
            row == _row_at(sorted_rows, span * SPAN - 1, num_tokens)
        )
        if ~is_from_before:
            col = (tl.program_id(0) % num_col_blocks) * COLS + tl.arange(0, COLS)
            is_col = col < hidden
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


def sum_cols(hidden: int, itemsize: int) -> int:
    """Columns of one program: two accesses of 16 bytes a thread."""
    cols: int = min(triton.next_power_of_2(hidden), 4096 // itemsize)
    return cols


def _sort_rows(
    ids: Tensor, slot: Tensor | None, order: Tensor, *, num_rows: int, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """Table row of each place, int32 ``[T]``, and the bounds of the places that have one, int32 ``[2]``."""
    num_tokens = order.shape[0]
    sorted_rows = torch.empty(num_tokens, dtype=torch.int32, device=ids.device)
    bounds = torch.zeros(2, dtype=torch.int32, device=ids.device)
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
        num_warps=4,
    )
    if num_spans > 1:
        # A chain of partial sums is read by few programs: narrow ones are more.
        cols = min(cols, 512)
        _sum_partials_kernel[((num_spans - 1) * triton.cdiv(hidden, cols),)](
            sorted_rows, out, partials, num_tokens, hidden, SPAN=SPAN, CHAIN=CHAIN, COLS=cols, num_warps=4
        )
    return out
