"""The row kernels, interpreted, against the naive truth in float64, with poisoned outputs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hetsched.kernels.rows import naive, triton, triton_sum
from hetsched.kernels.rows.faults import raise_faults
from tests.kernels import rows_cases
from tests.kernels.rows_cases import DTYPES, SIZES, merge_case


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN (integers their maximum), so that an element that nobody wrote shows."""
    # Deterministic mode fills it by default.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("num_tokens", SIZES)
def test_merge_and_its_adjoints_equal_the_truth(num_tokens: int) -> None:
    case = merge_case(num_tokens, 72, torch.float32, device="cpu")
    rows_cases.check_merge(case)
    rows_cases.check_row_gradients(case)
    rows_cases.check_table_gradient(case)


@pytest.mark.parametrize("hidden", [1, 63, 129, 1000, 1032])
def test_any_hidden_size_is_covered(hidden: int) -> None:
    case = merge_case(40, hidden, torch.float32, device="cpu")
    rows_cases.check_merge(case)
    rows_cases.check_row_gradients(case)
    rows_cases.check_table_gradient(case)


@pytest.mark.parametrize(("dtype", "index_dtype"), [*((d, torch.int64) for d in DTYPES), (torch.float32, torch.int32)])
def test_every_dtype_is_copied_bit_by_bit(dtype: torch.dtype, index_dtype: torch.dtype) -> None:
    case = merge_case(63, 40, dtype, device="cpu", index_dtype=index_dtype)
    rows_cases.check_merge(case)
    rows_cases.check_row_gradients(case)
    rows_cases.check_table_gradient(case)


def test_one_id_over_many_spans_is_summed_once() -> None:
    num_tokens = 4 * triton_sum.SPAN + 3
    ids = torch.full((num_tokens,), 4)
    ids[: triton_sum.SPAN // 2] = 1
    grad = torch.ones(num_tokens, 16)
    out = torch.zeros(6, 16)
    triton_sum.sum_rows_into(out, grad, ids, None, naive.text_order(ids, None), vocab_start=0)
    assert out[:, 0].tolist() == [0, triton_sum.SPAN // 2, 0, 0, num_tokens - triton_sum.SPAN // 2, 0]
    raise_faults("cpu")


def test_sixteen_bit_gradients_are_summed_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16: a sum kept in bfloat16 would not move.
    grad = torch.tensor([[256.0]] + [[1.0]] * 256, dtype=torch.bfloat16)
    ids = torch.zeros(257, dtype=torch.int64)
    out = torch.zeros(1, 1, dtype=torch.bfloat16)
    triton_sum.sum_rows_into(out, grad, ids, None, naive.text_order(ids, None), vocab_start=0)
    assert out.item() == 512.0


def test_a_gradient_with_stride_zero_is_read_right() -> None:
    grad = torch.tensor(3.0).expand(5, 4)
    assert triton.take(grad, torch.tensor([4, -1, 0])).tolist() == [[3.0] * 4, [0.0] * 4, [3.0] * 4]


def test_indices_with_a_stride_are_read_right() -> None:
    table, rows = torch.randn(9, 4), torch.randn(2, 4)
    ids, slot = torch.tensor([[3, 7], [0, 7], [1, 7]])[:, 0], torch.tensor([[-1, 0], [1, 0], [-1, 0]])[:, 0]
    out = triton.merge(table, ids, slot, [rows], vocab_start=0, vocab_size=9)
    assert torch.equal(out, torch.stack([table[3], rows[1], table[1]]))
    assert triton.invert(slot, 2, is_slot=True).tolist() == [-1, 1]
    order = naive.text_order(ids, slot)
    total = triton_sum.sum_rows_into(torch.zeros(9, 4), torch.ones(3, 4), ids, slot, order, vocab_start=0)
    assert total[:, 0].tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0]


def test_a_text_only_microbatch_reads_the_table_alone() -> None:
    table = torch.randn(4, 8)
    ids = torch.tensor([3, 0, 1])
    slot = torch.full((3,), -1)
    empty = torch.empty(0, 8)
    for rows in ([], [empty], [empty, empty]):
        out = triton.merge(table, ids, slot, rows, vocab_start=0, vocab_size=4)
        assert torch.equal(out, table[ids])


# Each mutant is a defect that the oracle above must see.
MUTANTS = {
    "a dropped row": lambda out: out.index_fill(0, torch.tensor([17]), 0.0),
    "two swapped rows": lambda out: out[torch.tensor([1, 0, *range(2, out.shape[0])])],
    "a wrong scale": lambda out: out * 1.0000002,
    "an unwritten element": lambda out: out.index_put((torch.tensor(5), torch.tensor(3)), torch.tensor(float("nan"))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_oracle_sees(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = merge_case(127, 24, torch.float32, device="cpu")
    true_merge, true_take = triton.merge, triton.take
    monkeypatch.setattr(triton, "merge", lambda *a, **k: MUTANTS[mutant](true_merge(*a, **k)))
    monkeypatch.setattr(triton, "take", lambda *a, **k: MUTANTS[mutant](true_take(*a, **k)))
    with pytest.raises(AssertionError):
        rows_cases.check_merge(case)


def test_the_oracle_sees_a_run_that_loses_its_partial_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    case = merge_case(129, 8, torch.float32, device="cpu")
    case.ids.fill_(case.vocab_start)

    class Skipped:
        def __getitem__(self, grid: object) -> object:
            return lambda *args, **kwargs: None

    monkeypatch.setattr(triton_sum, "_sum_partials_kernel", Skipped())
    with pytest.raises(AssertionError):
        rows_cases.check_table_gradient(case)
