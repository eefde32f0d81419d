"""Random ragged cases for the row kernels, and what each must satisfy, on any device.

The interpreter's tests and the GPU's share them. Sums draw small integers, so that float32 sums are exact and the
bound of 1e-12 holds however the additions are grouped; copies draw anything and must be bitwise equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hetsched.kernels.rows import naive, triton, triton_sum
from hetsched.kernels.rows.faults import raise_faults

SIZES = (0, 1, 63, 127, 128, 129, 1000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class MergeCase:
    """Inputs of a merge; ``rows`` are several encoders', one of them empty."""

    table: Tensor
    ids: Tensor
    slot: Tensor
    rows: list[Tensor]
    vocab_start: int
    vocab_size: int

    @property
    def num_rows(self) -> int:
        return sum(part.shape[0] for part in self.rows)


def merge_case(
    num_tokens: int, hidden: int, dtype: torch.dtype, *, device: str, index_dtype: torch.dtype = torch.int64
) -> MergeCase:
    """A vocabulary shard, ids inside and outside it and -1, slots in random order and rows that stay unused."""
    generator = torch.Generator().manual_seed(num_tokens * 8192 + hidden)
    vocab_size, vocab_start = 50, 10
    table = torch.randn(30, hidden, generator=generator).to(dtype)
    ids = torch.randint(-1, vocab_size, (num_tokens,), generator=generator)
    num_placed = num_tokens // 3
    sizes = [num_placed // 2, 0, num_placed - num_placed // 2 + 5]
    # Rows sit at a stride of their own, as slices of a wider buffer do.
    rows = [torch.randn(size, hidden + 8, generator=generator).to(dtype)[:, :hidden] for size in sizes]
    slot = torch.full((num_tokens,), -1)
    where = torch.randperm(num_tokens, generator=generator)[:num_placed]
    slot[where] = torch.randperm(sum(sizes), generator=generator)[:num_placed]
    return MergeCase(
        table=table.to(device),
        ids=ids.to(device, index_dtype),
        slot=slot.to(device, index_dtype),
        rows=[_keep_stride(part, device) for part in rows],
        vocab_start=vocab_start,
        vocab_size=vocab_size,
    )


def _keep_stride(part: Tensor, device: str) -> Tensor:
    wide = torch.empty(part.shape[0], part.shape[1] + 8, dtype=part.dtype, device=device)
    wide[:, : part.shape[1]] = part.to(device)
    return wide[:, : part.shape[1]]


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Bitwise equality; NaN left from poisoned memory never passes."""
    actual = actual.cpu()
    assert actual.dtype == expected.dtype
    assert not torch.isnan(actual).any()
    assert torch.equal(actual, expected)


def check_merge(case: MergeCase) -> None:
    """The kernel's rows are those of the naive merge in float64, and the inverse is the naive one."""
    out = triton.merge(
        case.table, case.ids, case.slot, case.rows, vocab_start=case.vocab_start, vocab_size=case.vocab_size
    )
    truth = naive.merge(
        case.table.cpu().double(),
        case.ids.cpu(),
        case.slot.cpu(),
        [part.cpu().double() for part in case.rows],
        vocab_start=case.vocab_start,
        vocab_size=case.vocab_size,
    )
    assert_same_bits(out, truth.to(case.table.dtype))
    inverse = triton.invert(case.slot, case.num_rows, is_slot=True)
    assert torch.equal(inverse.cpu(), naive.invert(case.slot.cpu(), case.num_rows, is_slot=True))
    raise_faults(case.table.device)


def check_row_gradients(case: MergeCase) -> None:
    """A gather of the slots: the adjoint of the merge for each encoder's rows."""
    grad = _integers(case)
    inverse = triton.invert(case.slot, case.num_rows, is_slot=True)
    actual = triton.take(grad, inverse)
    truth = torch.zeros(case.num_rows, grad.shape[1], dtype=torch.float64)
    has_slot = case.slot.cpu() >= 0
    truth[case.slot.cpu()[has_slot].long()] = grad.cpu().double()[has_slot]
    assert_same_bits(actual, truth.to(grad.dtype))
    raise_faults(grad.device)


def check_table_gradient(case: MergeCase, *, num_repeats: int = 1) -> None:
    """The sorted sum against index_add in float64; rows without ids stay untouched; repeats are bitwise equal."""
    grad = _integers(case)
    order = naive.text_order(case.ids, case.slot)
    untouched = 7.0
    repeats = []
    for _ in range(num_repeats):
        out = torch.full_like(case.table, untouched)
        triton_sum.sum_rows_into(out, grad, case.ids, case.slot, order, vocab_start=case.vocab_start)
        repeats.append(out.cpu())
    truth = naive.sum_rows(
        grad.cpu().double(),
        case.ids.cpu(),
        case.slot.cpu(),
        num_rows=case.table.shape[0],
        vocab_start=case.vocab_start,
    )
    local = case.ids.cpu().long() - case.vocab_start
    is_here = (local >= 0) & (local < case.table.shape[0]) & (case.slot.cpu() < 0)
    is_touched = torch.zeros(case.table.shape[0], dtype=torch.bool)
    is_touched[local[is_here]] = True
    error = (repeats[0].double() - truth)[is_touched].abs()
    assert error.numel() == 0 or error.max() <= 1e-12
    assert (repeats[0][~is_touched] == untouched).all()
    assert all(torch.equal(repeats[0], again) for again in repeats[1:])
    raise_faults(grad.device)


def _integers(case: MergeCase) -> Tensor:
    """A gradient of small integers: their sums are exact in every dtype that is tested."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.ids.shape[0], case.table.shape[1])
    return torch.randint(-2, 3, shape, generator=generator).to(case.table.device, case.table.dtype)
