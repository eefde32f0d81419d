"""hetsched.ops: gradients, fake kernels, torch.compile, and the words for bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hetsched import ops
from hetsched.kernels.rows import library, naive, triton, triton_sum

F64 = torch.float64
IDS = torch.tensor([3, 0, 6, 1, 1, 5, 2, 2, 2, -1, 4])
SLOT = torch.tensor([-1, -1, 2, -1, 0, -1, -1, 4, 1, -1, -1])


PLACES = torch.tensor([8, 1, 0, 5, 3])


def random_rows(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, requires_grad=True)


def test_merge_takes_rows_of_several_encoders_in_the_given_order() -> None:
    table, vision, audio = random_rows(7, 5), random_rows(2, 5), random_rows(3, 5)
    out = ops.merge(table, IDS, SLOT, [vision, audio])
    assert torch.equal(out[2], audio[0])
    assert torch.equal(out[4], vision[0])
    assert torch.equal(out[7], audio[2])
    assert torch.equal(out[8], vision[1])
    assert torch.equal(out[[0, 1, 3, 5, 6, 10]], table[[3, 0, 1, 5, 2, 4]])
    assert (out[9] == 0).all()


def test_shards_of_the_vocabulary_sum_to_the_whole_table() -> None:
    table, rows = torch.randn(7, 5, dtype=F64), torch.randn(5, 5, dtype=F64)
    whole = ops.merge(table, IDS, SLOT, [rows])
    nobody = torch.where(SLOT >= 0, -1, IDS)
    first = ops.merge(table[:4], IDS, SLOT, [rows], vocab=(0, 7))
    second = ops.merge(table[4:], nobody, torch.full_like(SLOT, -1), [], vocab=(4, 7))
    assert torch.equal(first + second, whole)


def test_gradients_equal_finite_differences() -> None:
    table, vision, audio = random_rows(7, 3), random_rows(2, 3), random_rows(3, 3)
    order = ops.text_order(IDS, SLOT)
    check = torch.autograd.gradcheck
    assert check(lambda t, v, a: ops.merge(t, IDS, SLOT, [v, a], order=order), (table, vision, audio))
    assert check(lambda t: ops.merge(t, IDS, SLOT, [vision.detach(), audio.detach()], vocab=(2, 9)), (table,))
    assert check(lambda s: ops.gather(s, IDS), (table,))
    assert check(lambda r: ops.scatter(r, torch.tensor([4, 0]), 6), (vision,))
    cu_seqlens = torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    assert check(lambda r: ops.pad(r, cu_seqlens, 6), (table,))
    assert check(lambda p: ops.unpad(p, cu_seqlens, 7), (random_rows(3, 6, 2),))
    assert torch.autograd.gradgradcheck(lambda r: ops.pad(r, cu_seqlens, 6), (table,))


def test_rows_that_need_no_gradient_get_none() -> None:
    table, frozen = random_rows(7, 5), torch.randn(5, 5, dtype=F64)
    ops.merge(table, IDS, SLOT, [frozen]).sum().backward()  # type: ignore[no-untyped-call]
    assert frozen.grad is None
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_pad_lays_out_each_sequence_and_unpad_inverts_it() -> None:
    rows = torch.arange(1.0, 6.0)[:, None].expand(5, 2)
    cu_seqlens = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    padded = ops.pad(rows, cu_seqlens, 4)
    assert padded[..., 0].tolist() == [[1, 2, 3, 0], [0, 0, 0, 0], [4, 5, 0, 0]]
    assert torch.equal(ops.unpad(padded, cu_seqlens, 5), rows)
    nothing = torch.zeros(1, dtype=torch.int32)
    assert ops.pad(rows[:0], nothing, 4).shape == (0, 4, 2)
    assert ops.unpad(padded[:0], nothing, 0).shape == (0, 2)


def test_slots_invert_the_positions_of_several_encoders() -> None:
    positions = [torch.tensor([4, 1]), torch.tensor([0])]
    assert ops.slots(positions, 6).tolist() == [2, 1, -1, -1, 0, -1]


def test_scatter_is_the_adjoint_of_gather_in_integers() -> None:
    index = torch.tensor([5, 2, 7])
    x, y = torch.randint(-9, 9, (8, 4)).double(), torch.randint(-9, 9, (3, 4)).double()
    assert (ops.gather(x, index) * y).sum() == (x * ops.scatter(y, index, 8)).sum()


def test_ops_pass_opcheck() -> None:
    table, vision, audio = random_rows(7, 5), random_rows(2, 5), random_rows(3, 5)
    inverse = naive.invert(SLOT, 5, is_slot=True)
    cu_seqlens = torch.tensor([0, 3, 3, 11], dtype=torch.int32)
    to_padded, to_rows = naive.pad_index(cu_seqlens, max_seqlen=9, num_rows=11)
    opcheck(library.invert, (SLOT, 5, True))
    opcheck(library.merge, (table, IDS, SLOT, inverse, None, [vision, audio], 0, 7))
    opcheck(library.merge, (table, IDS, None, None, None, [], 0, 7))
    opcheck(library.sum_rows, (random_rows(11, 5).detach(), IDS, SLOT, ops.text_order(IDS, SLOT), 7, 0))
    opcheck(library.pad_index, (cu_seqlens, 9, 11))
    opcheck(library.move, (random_rows(11, 5), to_padded, to_rows))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_gives_the_same_values_and_gradients(dynamic: bool) -> None:
    table, rows = random_rows(7, 5), random_rows(5, 5)
    cu_seqlens = torch.tensor([0, 3, 11], dtype=torch.int32)

    def step(table: Tensor, rows: Tensor) -> Tensor:
        merged = ops.merge(table, IDS, SLOT, [rows])
        back = ops.unpad(ops.pad(merged, cu_seqlens, 8), cu_seqlens, 11)
        return (ops.gather(back, IDS) * back).sum() + ops.scatter(rows, PLACES, 9).square().sum()

    expected = torch.autograd.grad(step(table, rows), (table, rows))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    actual = torch.autograd.grad(compiled(table, rows), (table, rows))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


TABLE, ROWS = torch.zeros(7, 5), torch.zeros(5, 5)
CU_SEQLENS = torch.tensor([0, 3, 11], dtype=torch.int32)
OUTSIDE, TWICE, WRONG_ID = SLOT.clone(), SLOT.clone(), IDS.clone()
OUTSIDE[3], TWICE[8], WRONG_ID[5] = 5, 2, 7
META = torch.empty(5, 5, device="meta")
BAD_CALLS: dict[str, Callable[[], Any]] = {
    "slot of shape [11] has 5 at position 3, but rows have 5 rows": lambda: ops.merge(TABLE, IDS, OUTSIDE, [ROWS]),
    "slot of shape [11] has 4 at position 7, but rows have 3 rows": lambda: ops.merge(TABLE, IDS, SLOT, [ROWS[:3]]),
    "slot of shape [11] has 2 at position 2 and so does": lambda: ops.merge(TABLE, IDS, TWICE, [ROWS]),
    "ids of shape [11] has 7 at position 5, but the vocabulary has 7": lambda: ops.merge(TABLE, WRONG_ID, SLOT, [ROWS]),
    "index of shape [11] has 7 at position 5, but there are 7 rows": lambda: ops.gather(TABLE, WRONG_ID),
    "index of shape [5] has -1 at position 1, but": lambda: ops.scatter(ROWS, torch.tensor([0, -1, 2, 3, 4]), 9),
    "index of shape [2] has 3 at position 0 and so does": lambda: ops.slots([torch.tensor([3, 3])], 4),
    "cu_seqlens of shape [3] has 11 at position 2; it must": lambda: ops.pad(torch.zeros(11, 2), CU_SEQLENS, 7),
    "cu_seqlens of shape [3] has 11 at position 2; it must start": lambda: ops.pad(torch.zeros(10, 2), CU_SEQLENS, 9),
    "rows[0] of shape [5, 5] is torch.float64 on cpu": lambda: ops.merge(TABLE, IDS, SLOT, [ROWS.double()]),
    "rows[1] of shape [5, 5] is torch.float32 on meta": lambda: ops.merge(TABLE, IDS, SLOT, [ROWS, META]),
    "rows[0] of shape [5, 4] is torch.float32": lambda: ops.merge(TABLE, IDS, SLOT, [ROWS[:, :4]]),
    "table of shape [7, 5] has dtype torch.int64": lambda: ops.merge(TABLE.long(), IDS, SLOT, [ROWS]),
    "slot has shape [10], want [11]": lambda: ops.merge(TABLE, IDS, SLOT[1:], [ROWS]),
    "ids of shape [11] has dtype torch.float32": lambda: ops.merge(TABLE, IDS.float(), SLOT, [ROWS]),
    "padded must be [num_seqs, max_seqlen, hidden]": lambda: ops.unpad(ROWS, CU_SEQLENS, 11),
    "cu_seqlens has shape [3], want [2]": lambda: ops.unpad(ROWS[None], CU_SEQLENS, 5),
    "index is empty": lambda: ops.slots([], 4),
}


@pytest.mark.parametrize("words", BAD_CALLS)
def test_bad_input_is_a_value_error_with_argument_shape_and_value(words: str) -> None:
    with pytest.raises(ValueError, match=r"\[|empty") as error:
        BAD_CALLS[words]()
    assert words in str(error.value)


def test_an_order_that_does_not_sort_the_ids_is_refused() -> None:
    table = TABLE.clone().requires_grad_()
    out = ops.merge(table, IDS, SLOT, [ROWS], order=torch.arange(11))
    with pytest.raises(ValueError, match=r"order of shape \[11\] has 0 at position 0, which does not sort ids"):
        out.sum().backward()  # type: ignore[no-untyped-call]


def device_words(call: Callable[[], Any]) -> str:
    """What the fault record says after a kernel has met bad input and gone on."""
    call()
    with pytest.raises(ValueError, match="shape") as error:
        ops.raise_faults("cpu")
    ops.raise_faults("cpu")
    return str(error.value)


def cpu_words(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match="shape") as error:
        call()
    return str(error.value)


def test_kernels_report_faults_in_the_words_of_the_cpu_path() -> None:
    merge = {"vocab_start": 0, "vocab_size": 7}
    for fast, slow in (
        (lambda: triton.invert(OUTSIDE, 5, is_slot=True), lambda: naive.invert(OUTSIDE, 5, is_slot=True)),
        (
            lambda: triton.merge(TABLE, WRONG_ID, SLOT, [ROWS], **merge),
            lambda: ops.merge(TABLE, WRONG_ID, SLOT, [ROWS]),
        ),
        (lambda: triton.merge(TABLE, WRONG_ID, None, [], **merge), lambda: ops.gather(TABLE, WRONG_ID)),
        (lambda: triton.invert(WRONG_ID, 7, is_slot=False), lambda: naive.invert(WRONG_ID, 7, is_slot=False)),
        (
            lambda: triton.check_cu_seqlens(CU_SEQLENS, max_seqlen=7, num_rows=11),
            lambda: naive.check_cu_seqlens(CU_SEQLENS, max_seqlen=7, num_rows=11),
        ),
    ):
        assert device_words(fast) == cpu_words(slow)


def test_kernels_report_rows_used_twice_and_orders_that_do_not_sort() -> None:
    assert "has 2 at position" in device_words(lambda: triton.invert(TWICE, 5, is_slot=True))
    grad, order = torch.zeros(11, 5), torch.arange(11)
    words = device_words(lambda: triton_sum.sum_rows_into(TABLE.clone(), grad, IDS, SLOT, order, vocab_start=0))
    assert words.startswith("order of shape [11] has 0 at position 0, which does not sort ids")


def test_the_first_fault_stays_until_it_is_read() -> None:
    triton.invert(OUTSIDE, 5, is_slot=True)
    assert "slot" in device_words(lambda: triton.merge(TABLE, WRONG_ID, SLOT, [], vocab_start=0, vocab_size=7))
