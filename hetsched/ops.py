"""Row operations: text and modality rows into the sequence that a rank keeps, and back, each byte once.

Every function is differentiable, works under torch.compile and, on a GPU, in a CUDA graph. Bad placeholders raise a
ValueError: at once on the CPU; on a GPU, where looking would stop the host, at the next ``raise_faults``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetsched.kernels.rows import library
from hetsched.kernels.rows.faults import fault_error, fault_record, raise_faults
from hetsched.kernels.rows.naive import text_order

__all__ = [
    "fault_error",
    "fault_record",
    "gather",
    "merge",
    "pad",
    "raise_faults",
    "scatter",
    "slots",
    "text_order",
    "unpad",
]

_ROW_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INDEX_DTYPES = (torch.int32, torch.int64)


def merge(
    table: Tensor,
    ids: Tensor,
    slot: Tensor,
    rows: Sequence[Tensor],
    *,
    vocab: tuple[int, int] | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The rows of a sequence: modality rows where a position has a slot, otherwise rows of the text table.

    ``out[t] = rows[slot[t]] if slot[t] >= 0 else table[ids[t]]``, in one pass; the order of positions
    is the caller's, so a rank builds just the rows it keeps. With a table sharded over the vocabulary every tp rank
    gives the ids of its shard and zero for the others, and one of them gives the modality rows (the others set slot and
    id to -1 there), so that the sum over tp is the whole.

    Args:
        table: ``[table_rows, hidden]``, float32, bfloat16, float16 or float64.
        ids: int32 or int64 ``[num_tokens]``; ids outside the table's range give zero rows, -1 on purpose.
        slot: int32 or int64 ``[num_tokens]``, row within ``rows`` one after the other, negative for text.
        rows: one ``[num_rows, hidden]`` per encoder, like ``table`` in dtype and device; each row is used at most once.
        vocab: for a sharded table, the id of its first row and the size of the whole vocabulary.
        order: what ``text_order(ids, slot)`` gives, when the caller knows it; saves the backward a sort.

    Returns:
        ``[num_tokens, hidden]``, new memory.

    Raises:
        ValueError: shapes, dtypes or devices disagree; an id is outside the vocabulary; a slot is outside the
            rows or used twice.
    """
    _check_rows("table", table)
    _check_index("ids", ids, like=table)
    _check_index("slot", slot, like=table, length=ids.shape[0])
    for number, part in enumerate(rows):
        _check_rows(f"rows[{number}]", part, like=table)
    if order is not None:
        _check_index("order", order, like=table, length=ids.shape[0])
    inverse = library.invert(slot, sum(part.shape[0] for part in rows), True)
    vocab_start, vocab_size = vocab or (0, table.shape[0])
    merged: Tensor = library.merge(table, ids, slot, inverse, order, list(rows), vocab_start, vocab_size)
    return merged


def slots(index: Sequence[Tensor], num_tokens: int) -> Tensor:
    """The slot of each position, for ``merge``, from the positions that each encoder's rows fill.

    Args:
        index: per encoder, int32 or int64 ``[num_rows]``: the position of each row.
        num_tokens: positions of the sequence.

    Returns:
        int32 ``[num_tokens]``, -1 where no row goes.

    Raises:
        ValueError: a position is outside the sequence or filled twice.
    """
    if not index:
        raise ValueError("index is empty; slots needs the positions of at least one encoder's rows")
    for number, part in enumerate(index):
        _check_index(f"index[{number}]", part, like=index[0])
    inverse: Tensor = library.invert(torch.cat(list(index)), num_tokens, False)
    return inverse


def gather(source: Tensor, index: Tensor, *, order: Tensor | None = None) -> Tensor:
    """``out[t] = source[index[t]]``, and a zero row where the index is -1.

    A row may be used any number of times; its gradient is a sorted, deterministic sum.

    Args:
        source: ``[num_rows, hidden]``.
        index: int32 or int64 ``[num_out]``.
        order: what ``text_order(index, None)`` gives, when the caller knows it.

    Returns:
        ``[num_out, hidden]``, new memory.

    Raises:
        ValueError: an index is not in ``[-1, num_rows)``.
    """
    _check_rows("source", source)
    _check_index("index", index, like=source)
    if order is not None:
        _check_index("order", order, like=source, length=index.shape[0])
    gathered: Tensor = library.merge(source, index, None, None, order, [], 0, source.shape[0])
    return gathered


def scatter(rows: Tensor, index: Tensor, num_out: int) -> Tensor:
    """``out[index[r]] = rows[r]``, zero elsewhere: the adjoint of a gather without repeats, in one pass.

    Args:
        rows: ``[num_rows, hidden]``.
        index: int32 or int64 ``[num_rows]``, no value twice.
        num_out: rows of the result.

    Returns:
        ``[num_out, hidden]``, new memory.

    Raises:
        ValueError: an index is not in ``[0, num_out)`` or comes twice.
    """
    _check_rows("rows", rows)
    _check_index("index", index, like=rows, length=rows.shape[0])
    moved: Tensor = library.move(rows, library.invert(index, num_out, False), index)
    return moved


def pad(rows: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Packed sequences as a padded batch, zero behind each sequence's end.

    Args:
        rows: ``[num_tokens, hidden]``.
        cu_seqlens: int32 or int64 ``[num_seqs + 1]``, from 0 to ``num_tokens``.
        max_seqlen: at least the longest sequence.

    Returns:
        ``[num_seqs, max_seqlen, hidden]``, new memory.

    Raises:
        ValueError: ``cu_seqlens`` does not tile the rows or a sequence is longer than ``max_seqlen``.
    """
    _check_rows("rows", rows)
    _check_cu_seqlens(cu_seqlens, like=rows)
    row_of_padded, padded_of_row = library.pad_index(cu_seqlens, max_seqlen, rows.shape[0])
    padded: Tensor = library.move(rows, row_of_padded, padded_of_row)
    return padded.view(cu_seqlens.shape[0] - 1, max_seqlen, rows.shape[1])


def unpad(padded: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """The packed rows of a padded batch: the inverse of ``pad``.

    Args:
        padded: ``[num_seqs, max_seqlen, hidden]``.
        cu_seqlens: int32 or int64 ``[num_seqs + 1]``, from 0 to ``num_tokens``.
        num_tokens: rows in all, which the host knows.

    Returns:
        ``[num_tokens, hidden]``, new memory.

    Raises:
        ValueError: ``cu_seqlens`` does not tile ``num_tokens`` or a sequence is longer than ``max_seqlen``.
    """
    if padded.dim() != 3:
        raise ValueError(f"padded must be [num_seqs, max_seqlen, hidden], got shape {list(padded.shape)}")
    num_seqs, max_seqlen, hidden = padded.shape
    rows = padded.reshape(num_seqs * max_seqlen, hidden)
    _check_rows("padded", rows)
    _check_cu_seqlens(cu_seqlens, like=rows, num_seqs=num_seqs)
    row_of_padded, padded_of_row = library.pad_index(cu_seqlens, max_seqlen, num_tokens)
    moved: Tensor = library.move(rows, padded_of_row, row_of_padded)
    return moved


def _check_rows(name: str, rows: Tensor, *, like: Tensor | None = None) -> None:
    if rows.dim() != 2:
        raise ValueError(f"{name} must be [rows, hidden], got shape {list(rows.shape)}")
    if rows.dtype not in _ROW_DTYPES:
        raise ValueError(f"{name} of shape {list(rows.shape)} has dtype {rows.dtype}, which is no row dtype")
    if like is None:
        return
    if rows.dtype != like.dtype or rows.device != like.device or rows.shape[1] != like.shape[1]:
        raise ValueError(
            f"{name} of shape {list(rows.shape)} is {rows.dtype} on {rows.device}, but must be like"
            f" [rows, {like.shape[1]}], {like.dtype} on {like.device}"
        )


def _check_index(name: str, index: Tensor, *, like: Tensor, length: int | None = None) -> None:
    if index.dtype not in _INDEX_DTYPES:
        raise ValueError(f"{name} of shape {list(index.shape)} has dtype {index.dtype}, want int32 or int64")
    if index.dim() != 1 or (length is not None and index.shape[0] != length):
        raise ValueError(f"{name} has shape {list(index.shape)}, want [{'num' if length is None else length}]")
    if index.device != like.device:
        raise ValueError(f"{name} of shape {list(index.shape)} is on {index.device}, want {like.device}")


def _check_cu_seqlens(cu_seqlens: Tensor, *, like: Tensor, num_seqs: int | None = None) -> None:
    _check_index("cu_seqlens", cu_seqlens, like=like, length=None if num_seqs is None else num_seqs + 1)
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens has shape [0], want [num_seqs + 1]")
