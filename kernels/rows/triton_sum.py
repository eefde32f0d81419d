"""The table's gradient in Triton: a sorted, deterministic sum of gradient rows by id.

Positions come sorted by id. A program walks one span of them over one block of columns, keeps the running sum of
the current id in registers and writes each table row once, without atomics. A run of one id that crosses spans
leaves a float32 partial sum per span, and a second kernel adds these in the order of spans, so the work is even
however skewed the ids are. Shapes: T tokens, V table rows, H hidden.
"""

# mypy: disable-error-code="assignment,unreachable"
# A tuple that grows in an unrolled loop has no one type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hetsched.kernels.rows.faults import Fault, fault_record
from hetsched.kernels.rows.triton import report_any, with_unit_columns

SPAN = 32
GROUP = 8
"""Gradient rows that a program has in flight at once; divides SPAN."""
CHAIN = 8
"""Partial sums that are in flight at once."""

_NO_ROW = tl.constexpr(-1)
_LAST = tl.constexpr(2**62)


@triton.jit
def _load_sort_key(p, order, ids, slot, num_tokens):
    """Position at place p of the order, and the key that the order sorts by: the id, modality rows last."""
    position = tl.load(order + p, mask=p < num_tokens, other=-1).to(tl.int64)
    is_token = (position >= 0) & (position < num_tokens)
    key = tl.load(ids + position, mask=is_token, other=0).to(tl.int64)
    if slot is not None:
        key = tl.where(tl.load(slot + position, mask=is_token, other=-1) < 0, key, _LAST)
    return position, key, is_token


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "vocab_start"])
def _sort_rows_kernel(
    ids,
    slot,
    order,
    sorted_rows,
    record,
    num_tokens,
    num_rows,
    vocab_start,
    FAULT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Table row of each place of the order, ``_NO_ROW`` where there is none; checks that the order is one."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_live = p < num_tokens
    position, key, is_token = _load_sort_key(p, order, ids, slot, num_tokens)
    next_position, next_key, _ = _load_sort_key(p + 1, order, ids, slot, num_tokens)
    is_sorted = (key < next_key) | ((key == next_key) & (position < next_position)) | (p + 1 >= num_tokens)
    report_any(record, FAULT, is_live & ~(is_token & is_sorted), p, position, num_tokens, num_tokens)
    row = key - vocab_start
    has_row = is_token & (key >= 0) & (key != _LAST) & (row >= 0) & (row < num_rows)
    tl.store(sorted_rows + p, tl.where(has_row, row, _NO_ROW).to(tl.int32), mask=is_live)


@triton.jit
def _row_at(sorted_rows, p, num_tokens):
    return tl.load(sorted_rows + p, mask=(p >= 0) & (p < num_tokens), other=_NO_ROW)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_spans_kernel(
    grad,
    order,
    sorted_rows,
    out,
    partials,
    num_tokens,
    hidden,
    grad_stride,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    COLS: tl.constexpr,
):
    """Sums the runs of a span; ``partials[2s]`` is a run that began before span s, ``[2s + 1]`` one that goes on."""
    num_col_blocks = tl.cdiv(hidden, COLS)
    span = tl.program_id(0) // num_col_blocks
    col = (tl.program_id(0) % num_col_blocks) * COLS + tl.arange(0, COLS)
    is_col = col < hidden
    partial = partials + 2 * span.to(tl.int64) * hidden + col
    begin = span * SPAN
    row = _row_at(sorted_rows, begin, num_tokens)
    is_from_left = _row_at(sorted_rows, begin - 1, num_tokens) == row
    total = tl.zeros([COLS], partials.dtype.element_ty)
    for group in range(0, SPAN, GROUP):
        # Every load of a group is in flight before the first sum. (Triton joins tuples but does not unpack them.)
        tiles = ()
        rows = (row,)
        for i in tl.static_range(GROUP):
            p = begin + group + i
            has_row = rows[i] != _NO_ROW
            position = tl.load(order + p, mask=has_row, other=0).to(tl.int64)
            tiles = tiles + (tl.load(grad + position * grad_stride + col, mask=has_row & is_col, other=0.0),)  # noqa: RUF005
            rows = rows + (_row_at(sorted_rows, p + 1, num_tokens),)  # noqa: RUF005
        for i in tl.static_range(GROUP):
            total += tiles[i].to(total.dtype)
            # Branches, not masks: most rows end no run, and a masked store still pays for its data's layout.
            if rows[i + 1] != row:
                if row != _NO_ROW:
                    if is_from_left:
                        tl.store(partial, total, mask=is_col)
                    else:
                        target = out + row.to(tl.int64) * hidden + col
                        tl.store(target, total.to(out.dtype.element_ty), mask=is_col)
                total = tl.zeros([COLS], partials.dtype.element_ty)
                is_from_left = False
            row = rows[i + 1]
    goes_on = (row != _NO_ROW) & (row == _row_at(sorted_rows, begin + SPAN - 1, num_tokens))
    if goes_on:
        tl.store(partial + tl.where(is_from_left, 0, hidden), total, mask=is_col)


@triton.jit(do_not_specialize=["num_tokens"])
def _sum_partials_kernel(
    sorted_rows, out, partials, num_tokens, hidden, SPAN: tl.constexpr, CHAIN: tl.constexpr, COLS: tl.constexpr
):
    """Adds the partial sums of the run that begins in a span and goes on, in the order of spans."""
    num_col_blocks = tl.cdiv(hidden, COLS)
    span = tl.program_id(0) // num_col_blocks
    col = (tl.program_id(0) % num_col_blocks) * COLS + tl.arange(0, COLS)
    is_col = col < hidden
    begin = span * SPAN
    row = _row_at(sorted_rows, begin + SPAN - 1, num_tokens)
    goes_on = (row != _NO_ROW) & (row == _row_at(sorted_rows, begin + SPAN, num_tokens))
    is_from_left = (row == _row_at(sorted_rows, begin, num_tokens)) & (
        row == _row_at(sorted_rows, begin - 1, num_tokens)
    )
    if goes_on & ~is_from_left:
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
        target = out + row.to(tl.int64) * hidden + col
        tl.store(target, total.to(out.dtype.element_ty), mask=is_col)


def sum_cols(hidden: int, itemsize: int) -> int:
    """Columns of one program: 16 bytes a thread."""
    cols: int = min(triton.next_power_of_2(hidden), 2048 // itemsize)
    return cols


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
    sorted_rows = torch.empty(num_tokens, dtype=torch.int32, device=grad.device)
    block = 256
    _sort_rows_kernel[(triton.cdiv(num_tokens, block),)](
        ids,
        slot,
        order,
        sorted_rows,
        fault_record(grad.device),
        num_tokens,
        out.shape[0],
        vocab_start,
        FAULT=int(Fault.ORDER_UNSORTED),
        BLOCK=block,
        num_warps=4,
    )
    num_spans = triton.cdiv(num_tokens, SPAN)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    partials = torch.empty(2 * num_spans, hidden, dtype=wide, device=grad.device)
    cols = sum_cols(hidden, grad.element_size())
    grid = (num_spans * triton.cdiv(hidden, cols),)
    _sum_spans_kernel[grid](
        grad,
        order,
        sorted_rows,
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
    _sum_partials_kernel[grid](
        sorted_rows, out, partials, num_tokens, hidden, SPAN=SPAN, CHAIN=CHAIN, COLS=cols, num_warps=4
    )
    return out
