"""The row operations as torch.library ops: CPU and CUDA implementations, fake kernels and autograd.

Five ops, each opaque to torch.compile. ``move`` is a sparse permutation given by an index and its inverse, so its
adjoint is itself with the two swapped; scatter, pad and unpad are moves. ``hetsched.ops`` holds the documented faces.
"""

# No postponed annotations here: torch reads the schemas from them.
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hetsched.kernels.rows import naive


def _triton_rows() -> Any:
    # Imported late: CPU machines need no triton.
    from hetsched.kernels.rows import triton

    return triton


@torch.library.custom_op("hetsched::invert", mutates_args=())
def invert(index: Tensor, num_rows: int, is_slot: bool) -> Tensor:
    """``inverse[index[t]] = t``, int32 ``[num_rows]``, -1 for a row that no position uses."""
    backend = _triton_rows() if index.is_cuda else naive
    inverse: Tensor = backend.invert(index, num_rows, is_slot=is_slot)
    return inverse


@invert.register_fake
def _(index: Tensor, num_rows: int, is_slot: bool) -> Tensor:
    return index.new_empty(num_rows, dtype=torch.int32)


@torch.library.custom_op("hetsched::pad_index", mutates_args=())
def pad_index(cu_seqlens: Tensor, max_seqlen: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """``naive.pad_index`` after its check."""
    backend = _triton_rows() if cu_seqlens.is_cuda else naive
    backend.check_cu_seqlens(cu_seqlens, max_seqlen=max_seqlen, num_rows=num_rows)
    return naive.pad_index(cu_seqlens, max_seqlen=max_seqlen, num_rows=num_rows)


@pad_index.register_fake
def _(cu_seqlens: Tensor, max_seqlen: int, num_rows: int) -> tuple[Tensor, Tensor]:
    num_padded = (cu_seqlens.shape[0] - 1) * max_seqlen
    return (cu_seqlens.new_empty(num_padded, dtype=torch.int64), cu_seqlens.new_empty(num_rows, dtype=torch.int64))


@torch.library.custom_op("hetsched::move", mutates_args=())
def move(source: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """``out[t] = source[index[t]]``, zero where the index is no row; ``inverse`` serves the gradient."""
    backend = _triton_rows() if source.is_cuda else naive
    moved: Tensor = backend.take(source, index)
    return moved


@move.register_fake
def _(source: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    return source.new_empty(index.shape[0], source.shape[1])


def _move_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, inverse = inputs
    ctx.save_for_backward(index, inverse)


def _move_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    index, inverse = ctx.saved_tensors
    return move(grad, inverse, index), None, None


move.register_autograd(_move_backward, setup_context=_move_setup)


@torch.library.custom_op("hetsched::sum_rows", mutates_args=())
def sum_rows(
    grad: Tensor, ids: Tensor, slot: Tensor | None, order: Tensor | None, num_rows: int, vocab_start: int
) -> Tensor:
    """The adjoint of ``merge`` for its table; deterministic."""
    if not grad.is_cuda:
        if order is not None:
            naive.check_order(order, ids, slot)
        return naive.sum_rows(grad, ids, slot, num_rows=num_rows, vocab_start=vocab_start)
    from hetsched.kernels.rows.triton_sum import sum_rows_into

    if order is None:
        order = naive.text_order(ids, slot)
    out = grad.new_zeros(num_rows, grad.shape[1])
    return sum_rows_into(out, grad, ids, slot, order, vocab_start=vocab_start)


@sum_rows.register_fake
def _(grad: Tensor, ids: Tensor, slot: Tensor | None, order: Tensor | None, num_rows: int, vocab_start: int) -> Tensor:
    return grad.new_empty(num_rows, grad.shape[1])


@torch.library.custom_op("hetsched::merge", mutates_args=())
def merge(
    table: Tensor,
    ids: Tensor,
    slot: Tensor | None,
    inverse: Tensor | None,
    order: Tensor | None,
    rows: Sequence[Tensor],
    vocab_start: int,
    vocab_size: int,
) -> Tensor:
    """``rows[slot[t]] if slot[t] >= 0 else table[ids[t] - vocab_start]``; the rest serves the gradients."""
    backend = _triton_rows() if table.is_cuda else naive
    merged: Tensor = backend.merge(table, ids, slot, rows, vocab_start=vocab_start, vocab_size=vocab_size)
    return merged


@merge.register_fake
def _(
    table: Tensor,
    ids: Tensor,
    slot: Tensor | None,
    inverse: Tensor | None,
    order: Tensor | None,
    rows: Sequence[Tensor],
    vocab_start: int,
    vocab_size: int,
) -> Tensor:
    return table.new_empty(ids.shape[0], table.shape[1])


def _merge_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, ids, slot, inverse, order, rows, vocab_start, _ = inputs
    ctx.save_for_backward(ids, slot, inverse, order)
    ctx.table_rows, ctx.vocab_start = table.shape[0], vocab_start
    ctx.num_rows = [part.shape[0] for part in rows]


def _merge_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ids, slot, inverse, order = ctx.saved_tensors
    table_grad = None
    if ctx.needs_input_grad[0]:
        table_grad = sum_rows(grad, ids, slot, order, ctx.table_rows, ctx.vocab_start)
    rows_grad: list[Tensor | None] = []
    start = 0
    for num, needs_grad in zip(ctx.num_rows, ctx.needs_input_grad[5], strict=True):
        part = None if inverse is None else inverse[start : start + num]
        rows_grad.append(move(grad, part, slot) if needs_grad and part is not None else None)
        start += num
    return table_grad, None, None, None, None, rows_grad, None, None


merge.register_autograd(_merge_backward, setup_context=_merge_setup)
