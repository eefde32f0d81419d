"""Row operations in plain torch: the truth that the kernels are tested against, and the CPU path.

Shapes: T tokens, R modality rows, V table rows, H hidden. Indices are int32 or int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetsched.kernels.rows.faults import Fault, fault_error


def _raise_at(bad: Tensor, values: Tensor, *, fault: Fault, bound: int) -> None:
    """Raises for the first position where ``bad`` holds."""
    if bool(bad.any()):
        position = int(bad.nonzero()[0])
        raise fault_error((fault, position, int(values[position]), values.shape[0], bound))


def invert(index_T: Tensor, num_rows: int, *, is_slot: bool) -> Tensor:
    """The position that each row fills: ``inverse[index[t]] = t``, -1 for a row that fills none.

    Args:
        index_T: row of each position; a negative slot means no row, a negative index is a fault.
        num_rows: R.
        is_slot: the faults name ``slot`` and not ``index``.

    Returns:
        int32 ``[R]``.

    Raises:
        ValueError: a row does not exist or is used twice.
    """
    out_of_range = Fault.SLOT_OUT_OF_RANGE if is_slot else Fault.INDEX_OUT_OF_RANGE
    twice = Fault.SLOT_TWICE if is_slot else Fault.INDEX_TWICE
    bad = index_T >= num_rows if is_slot else (index_T >= num_rows) | (index_T < 0)
    _raise_at(bad, index_T, fault=out_of_range, bound=num_rows)
    positions = (index_T >= 0).nonzero().squeeze(1)
    rows = index_T[positions].long()
    inverse = torch.full((num_rows,), -1, dtype=torch.int32, device=index_T.device)
    inverse[rows] = positions.int()
    is_lost = torch.zeros_like(index_T, dtype=torch.bool)
    is_lost[positions] = inverse[rows] != positions
    _raise_at(is_lost, index_T, fault=twice, bound=num_rows)
    return inverse


def take(source_NH: Tensor, index_T: Tensor) -> Tensor:
    """``out[t] = source[index[t]]``, zero where the index is no row of the source."""
    is_row = (index_T >= 0) & (index_T < source_NH.shape[0])
    out = source_NH.new_zeros(index_T.shape[0], source_NH.shape[1])
    out[is_row] = source_NH[index_T[is_row].long()]
    return out


def merge(
    table_VH: Tensor,
    ids_T: Tensor,
    slot_T: Tensor | None,
    rows_RH: Sequence[Tensor],
    *,
    vocab_start: int,
    vocab_size: int,
) -> Tensor:
    """``out[t] = rows[slot[t]] if slot[t] >= 0 else table[ids[t] - vocab_start]``; zero for an id outside the table.

    Raises:
        ValueError: an id of a text position is not in ``[-1, vocab_size)``.
    """
    is_text = torch.ones_like(ids_T, dtype=torch.bool) if slot_T is None else slot_T < 0
    fault = Fault.INDEX_OUT_OF_RANGE if slot_T is None else Fault.ID_OUT_OF_RANGE
    _raise_at(is_text & ((ids_T < -1) | (ids_T >= vocab_size)), ids_T, fault=fault, bound=vocab_size)
    # An id of -1 and one of another shard both land outside the table.
    local = torch.where(is_text & (ids_T >= 0), ids_T.long() - vocab_start, -1)
    out = take(table_VH, local)
    if slot_T is not None and rows_RH:
        out[~is_text] = take(torch.cat(list(rows_RH)), slot_T[~is_text])
    return out


def sum_rows(
    grad_TH: Tensor,
    ids_T: Tensor,
    slot_T: Tensor | None,
    *,
    num_rows: int,
    vocab_start: int,
) -> Tensor:
    """The adjoint of ``merge`` for its table: row v is the sum of ``grad`` over the text positions of id v.

    Accumulates in float32 (float64 for float64) in the order of positions.
    """
    local = ids_T.long() - vocab_start
    is_here = (ids_T >= 0) & (local >= 0) & (local < num_rows)
    if slot_T is not None:
        is_here &= slot_T < 0
    wide = torch.float64 if grad_TH.dtype == torch.float64 else torch.float32
    total = torch.zeros(num_rows, grad_TH.shape[1], dtype=wide, device=grad_TH.device)
    total.index_add_(0, local[is_here], grad_TH[is_here].to(wide))
    return total.to(grad_TH.dtype)


def text_order(ids_T: Tensor, slot_T: Tensor | None) -> Tensor:
    """Positions sorted by (id, position), modality rows last: what ``sum_rows`` walks along; int64 ``[T]``."""
    last = torch.iinfo(ids_T.dtype).max
    key = ids_T if slot_T is None else torch.where(slot_T < 0, ids_T, last)
    return torch.sort(key, stable=True).indices


def check_order(order_T: Tensor, ids_T: Tensor, slot_T: Tensor | None) -> None:
    """Raises unless ``order_T`` is what ``text_order`` gives."""
    bad = order_T != text_order(ids_T, slot_T)
    _raise_at(bad, order_T, fault=Fault.ORDER_UNSORTED, bound=order_T.shape[0])


def check_cu_seqlens(cu_seqlens: Tensor, *, max_seqlen: int, num_rows: int) -> None:
    """Raises unless the sequences tile ``num_rows`` rows and none is longer than ``max_seqlen``."""
    length = torch.diff(cu_seqlens.long(), prepend=cu_seqlens.new_zeros(1, dtype=torch.int64))
    bad = (length < 0) | (length > max_seqlen)
    bad[0] = cu_seqlens[0] != 0
    bad[-1] |= cu_seqlens[-1] != num_rows
    _raise_at(bad, cu_seqlens, fault=Fault.CU_SEQLENS, bound=num_rows)


def pad_index(cu_seqlens: Tensor, *, max_seqlen: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Where packed rows lie in a padded ``[B, S]`` batch, and back.

    Returns:
        int64 ``[B * S]``, the packed row of each padded position or -1; int64 ``[num_rows]``, the padded position
        of each packed row.
    """
    start, end = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    step = torch.arange(max_seqlen, device=cu_seqlens.device)
    row = start[:, None] + step
    row_of_padded = torch.where(row < end[:, None], row, -1).flatten()
    row = torch.arange(num_rows, device=cu_seqlens.device)
    seq = torch.searchsorted(end, row, right=True).clamp_(max=max(start.shape[0] - 1, 0))
    padded_of_row = seq * max_seqlen + row - start[seq] if start.shape[0] else row
    return row_of_padded, padded_of_row
