"""Row movement in Triton: one kernel reads each kept row once and writes it once, whatever the source.

Merge, gather, scatter, pad and unpad and the row gradients are all "out row t is a copy of one of these rows, or
zero", so they share ``_merge_kernel``. Rows are addressed with one 64-bit product each; columns stay 32-bit.
Shapes: T tokens, R modality rows, V table rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from hetsched.kernels.rows.faults import Fault, fault_record

_ID_OUT_OF_RANGE = tl.constexpr(int(Fault.ID_OUT_OF_RANGE))
_INDEX_OUT_OF_RANGE = tl.constexpr(int(Fault.INDEX_OUT_OF_RANGE))
_NO_POSITION = tl.constexpr(2**31 - 1)


@triton.jit
def _report(record, FAULT: tl.constexpr, position, value, length, bound):
    """Writes the fault unless one is recorded already; scalars."""
    if tl.atomic_cas(record, tl.full((), 0, tl.int64), tl.full((), FAULT, tl.int64)) == 0:
        tl.store(record + 1, position)
        tl.store(record + 2, value)
        tl.store(record + 3, length)
        tl.store(record + 4, bound)


@triton.jit
def report_any(record, FAULT: tl.constexpr, bad, positions, values, length, bound):
    """Reports the first of ``positions`` where ``bad`` holds; vectors."""
    first = tl.min(tl.where(bad, positions, _NO_POSITION), axis=0)
    if first != _NO_POSITION:
        value = tl.sum(tl.where(positions == first, values, 0), axis=0)
        _report(record, FAULT, first, value, length, bound)


@triton.jit(
    do_not_specialize=["num_tokens", "starts", "table_rows", "vocab_start", "vocab_size"],
    # A part of an inverse begins anywhere, and a variant for that would be loaded in the middle of some later step.
    do_not_specialize_on_alignment=["ids"],
)
def _merge_kernel(
    out,
    table,
    ids,
    slot,
    rows,
    starts,
    row_strides,
    record,
    num_tokens,
    hidden,
    table_rows,
    table_stride,
    vocab_start,
    vocab_size,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program copies ROWS output rows by COLS columns; ``slot`` and ``record`` may be None."""
    num_col_blocks = tl.cdiv(hidden, COLS)
    program = tl.program_id(0)
    col_block = program % num_col_blocks
    t = (program // num_col_blocks) * ROWS + tl.arange(0, ROWS)
    is_live = t < num_tokens
    token = tl.load(ids + t, mask=is_live, other=-1).to(tl.int64)
    local = token - vocab_start
    has_row = (token >= 0) & (local >= 0) & (local < table_rows)
    source = table + local * table_stride
    is_text = is_live
    if slot is not None:
        row = tl.load(slot + t, mask=is_live, other=-1).to(tl.int64)
        is_text = is_live & (row < 0)
        has_row = has_row & is_text
        for e in tl.static_range(len(rows)):
            is_here = (row >= starts[e]) & (row < starts[e + 1])
            source = tl.where(is_here, rows[e] + (row - starts[e]) * row_strides[e], source)
            has_row = has_row | is_here
    if record is not None:  # noqa: SIM102 (known at compile time, the next one is not)
        if col_block == 0:
            fault: tl.constexpr = _INDEX_OUT_OF_RANGE if slot is None else _ID_OUT_OF_RANGE
            bad = is_text & ((token < -1) | (token >= vocab_size))
            report_any(record, fault, bad, t, token, num_tokens, vocab_size)
    col = col_block * COLS + tl.arange(0, COLS)
    is_col = col < hidden
    tile = tl.load(source[:, None] + col[None, :], mask=has_row[:, None] & is_col[None, :], other=0.0)
    target = out + t.to(tl.int64)[:, None] * hidden + col[None, :]
    tl.store(target, tile, mask=is_live[:, None] & is_col[None, :])


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "least"])
def _invert_kernel(
    index,
    inverse,
    record,
    num_tokens,
    num_rows,
    least,
    OUT_OF_RANGE: tl.constexpr,
    TWICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``inverse[index[t]] = t`` where ``index[t] >= 0``; ``inverse`` starts at -1, so a second claim shows."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_live = t < num_tokens
    row = tl.load(index + t, mask=is_live, other=-1).to(tl.int64)
    bad = is_live & ((row < least) | (row >= num_rows))
    report_any(record, OUT_OF_RANGE, bad, t, row, num_tokens, num_rows)
    is_row = is_live & (row >= 0) & (row < num_rows)
    before = tl.atomic_xchg(inverse + row, t, mask=is_row)
    report_any(record, TWICE, is_row & (before != -1), t, row, num_tokens, num_rows)


@triton.jit(do_not_specialize=["num_seqs", "max_seqlen", "num_rows"])
def _check_cu_seqlens_kernel(
    cu_seqlens, record, num_seqs, max_seqlen, num_rows, FAULT: tl.constexpr, BLOCK: tl.constexpr
):
    """Sequences must tile the rows, none longer than ``max_seqlen``."""
    b = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_live = b <= num_seqs
    here = tl.load(cu_seqlens + b, mask=is_live, other=0).to(tl.int64)
    before = tl.load(cu_seqlens + b - 1, mask=is_live & (b > 0), other=0).to(tl.int64)
    bad = (here < before) | (here - before > max_seqlen) | ((b == 0) & (here != 0))
    bad = is_live & (bad | ((b == num_seqs) & (here != num_rows)))
    report_any(record, FAULT, bad, b, here, num_seqs + 1, num_rows)


def with_unit_columns(rows: Tensor) -> Tensor:
    """``rows`` itself where a row's elements are adjacent, otherwise a copy; gradients may come with stride 0."""
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def copy_tile(hidden: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns of one program: two accesses of 16 bytes in flight per thread, the best of those measured."""
    cols = min(triton.next_power_of_2(hidden), 2048 // itemsize)
    return 4096 // itemsize // cols, cols


def _launch_merge(
    out: Tensor,
    table: Tensor,
    ids: Tensor,
    *,
    slot: Tensor | None = None,
    rows: Sequence[Tensor] = (),
    vocab: tuple[int, int] | None = None,
) -> Tensor:
    """Fills ``out``; ``vocab`` is (start, size), or None where ids are trusted and a bad one means zero."""
    num_tokens, hidden = out.shape
    if out.numel() == 0:
        return out
    table = with_unit_columns(table)
    ids = ids.contiguous()
    slot = None if slot is None else slot.contiguous()
    # An encoder without rows has no address to read from.
    rows = tuple(with_unit_columns(part) for part in rows if part.shape[0] > 0)
    starts = tuple(accumulate((part.shape[0] for part in rows), initial=0))
    block_rows, block_cols = copy_tile(hidden, out.element_size())
    grid = (triton.cdiv(num_tokens, block_rows) * triton.cdiv(hidden, block_cols),)
    vocab_start, vocab_size = vocab or (0, 0)
    _merge_kernel[grid](
        out,
        table,
        ids,
        slot,
        rows,
        starts,
        tuple(part.stride(0) for part in rows),
        None if vocab is None else fault_record(out.device),
        num_tokens,
        hidden,
        table.shape[0],
        table.stride(0),
        vocab_start,
        vocab_size,
        ROWS=block_rows,
        COLS=block_cols,
        num_warps=4,
    )
    return out


def merge(
    table: Tensor,
    ids: Tensor,
    slot: Tensor | None,
    rows: Sequence[Tensor],
    *,
    vocab_start: int,
    vocab_size: int,
) -> Tensor:
    """What ``naive.merge`` does, in one pass; bad ids go to the fault record and give a zero row."""
    out = table.new_empty(ids.shape[0], table.shape[1])
    return _launch_merge(out, table, ids, slot=slot, rows=rows, vocab=(vocab_start, vocab_size))


def take(source: Tensor, index: Tensor) -> Tensor:
    """What ``naive.take`` does: ``out[t] = source[index[t]]``, zero where the index is no row of the source."""
    return _launch_merge(source.new_empty(index.shape[0], source.shape[1]), source, index)


def invert(index: Tensor, num_rows: int, *, is_slot: bool) -> Tensor:
    """What ``naive.invert`` does; bad indices go to the fault record and are left out."""
    inverse = torch.full((num_rows,), -1, dtype=torch.int32, device=index.device)
    num_tokens = index.shape[0]
    if num_tokens > 0:
        block = 512
        _invert_kernel[(triton.cdiv(num_tokens, block),)](
            index.contiguous(),
            inverse,
            fault_record(index.device),
            num_tokens,
            num_rows,
            torch.iinfo(torch.int64).min if is_slot else 0,
            OUT_OF_RANGE=int(Fault.SLOT_OUT_OF_RANGE if is_slot else Fault.INDEX_OUT_OF_RANGE),
            TWICE=int(Fault.SLOT_TWICE if is_slot else Fault.INDEX_TWICE),
            BLOCK=block,
            num_warps=4,
        )
    return inverse


def check_cu_seqlens(cu_seqlens: Tensor, *, max_seqlen: int, num_rows: int) -> None:
    """What ``naive.check_cu_seqlens`` does, into the fault record."""
    block = 512
    _check_cu_seqlens_kernel[(triton.cdiv(cu_seqlens.shape[0], block),)](
        cu_seqlens.contiguous(),
        fault_record(cu_seqlens.device),
        cu_seqlens.shape[0] - 1,
        max_seqlen,
        num_rows,
        FAULT=int(Fault.CU_SEQLENS),
        BLOCK=block,
        num_warps=4,
    )
