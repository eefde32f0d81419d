"""The row kernels on a GPU: the interpreter's cases, autograd through the ops, faults, CUDA graphs, compiled code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hetsched import ops
from hetsched.kernels.rows import library, naive, triton, triton_sum
from tests.kernels import rows_cases
from tests.kernels.rows_cases import DTYPES, SIZES, merge_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = "cuda"


@pytest.mark.parametrize("hidden", SIZES[1:])
@pytest.mark.parametrize("num_tokens", SIZES)
def test_merge_and_its_adjoints_equal_the_truth(num_tokens: int, hidden: int) -> None:
    # Blocks of the caching allocator come back in the next case: they hold NaN then.
    torch.full((2000 * (hidden + 8),), float("nan"), device=CUDA)
    case = merge_case(num_tokens, hidden, torch.float32, device=CUDA)
    rows_cases.check_merge(case)
    rows_cases.check_row_gradients(case)
    rows_cases.check_table_gradient(case, num_repeats=2)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 129, 4096])
def test_every_dtype_is_copied_bit_by_bit(dtype: torch.dtype, index_dtype: torch.dtype, hidden: int) -> None:
    case = merge_case(1000, hidden, dtype, device=CUDA, index_dtype=index_dtype)
    rows_cases.check_merge(case)
    rows_cases.check_row_gradients(case)
    rows_cases.check_table_gradient(case, num_repeats=2)


def test_rows_beyond_two_billion_elements_are_addressed_in_64_bits() -> None:
    num_rows, hidden = 300_000, 8192
    source = torch.empty(num_rows, hidden, dtype=torch.bfloat16, device=CUDA)
    source[-1], source[0] = 3.0, 1.0
    index = torch.full((num_rows,), num_rows - 1, dtype=torch.int32, device=CUDA)
    index[0] = 0
    out = triton.take(source, index)
    assert (out[0] == 1.0).all()
    assert (out[-1] == 3.0).all()
    assert (out[270_000] == 3.0).all()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("num_same", [1, 33, 65_000])
def test_skewed_ids_are_summed_once(num_same: int) -> None:
    num_tokens = 65_000
    ids = torch.randint(0, 5000, (num_tokens,), device=CUDA)
    ids[torch.randperm(num_tokens, device=CUDA)[:num_same]] = 7
    grad = torch.randint(-2, 3, (num_tokens, 256), device=CUDA).float()
    out = torch.zeros(5000, 256, device=CUDA)
    triton_sum.sum_rows_into(out, grad, ids, None, naive.text_order(ids, None), vocab_start=0)
    assert torch.equal(out.double(), naive.sum_rows(grad.double(), ids, None, num_rows=5000, vocab_start=0))


def leaves(case: rows_cases.MergeCase) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in (case.table, *case.rows)]


@pytest.mark.parametrize("give_order", [False, True])
def test_gradients_through_autograd_equal_those_of_the_cpu_path(give_order: bool) -> None:
    case = merge_case(1000, 72, torch.float64, device=CUDA)
    order = ops.text_order(case.ids, case.slot) if give_order else None
    vocab = (case.vocab_start, case.vocab_size)
    on_gpu = leaves(case)
    weight = torch.randn(1000, 72, dtype=torch.float64, device=CUDA)
    out = ops.merge(on_gpu[0], case.ids, case.slot, on_gpu[1:], vocab=vocab, order=order)
    (out * weight).sum().backward()  # type: ignore[no-untyped-call]
    on_cpu = [t.detach().cpu().requires_grad_() for t in on_gpu]
    truth = ops.merge(on_cpu[0], case.ids.cpu(), case.slot.cpu(), on_cpu[1:], vocab=vocab)
    (truth * weight.cpu()).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(out.cpu(), truth)
    for actual, expected in zip(on_gpu, on_cpu, strict=True):
        assert actual.grad is not None
        torch.testing.assert_close(actual.grad.cpu(), expected.grad, rtol=1e-12, atol=1e-12)
    ops.raise_faults(CUDA)


def test_pad_scatter_and_gather_agree_with_the_cpu_path() -> None:
    rows = torch.randn(1000, 136, device=CUDA, requires_grad=True)
    cu_seqlens = torch.tensor([0, 129, 129, 500, 1000], dtype=torch.int32, device=CUDA)
    index = torch.randperm(1200, device=CUDA)[:1000]
    padded = ops.pad(rows, cu_seqlens, 512)
    assert torch.equal(padded.cpu(), ops.pad(rows.cpu(), cu_seqlens.cpu(), 512))
    assert torch.equal(ops.unpad(padded, cu_seqlens, 1000), rows)
    scattered = ops.scatter(rows, index, 1200)
    assert torch.equal(scattered.cpu(), ops.scatter(rows.cpu(), index.cpu(), 1200))
    assert torch.equal(ops.gather(scattered, index), rows)
    # Each of the three maps every row to itself once, so the gradient of the sum is 2 + 1.
    (padded.sum() * 2 + ops.gather(scattered, index).sum()).backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert (rows.grad == 3.0).all()
    ops.raise_faults(CUDA)


def test_ops_pass_opcheck() -> None:
    case = merge_case(127, 24, torch.float32, device=CUDA)
    tensors = leaves(case)
    inverse = naive.invert(case.slot, case.num_rows, is_slot=True)
    opcheck(library.merge, (tensors[0], case.ids, case.slot, inverse, None, tensors[1:], case.vocab_start, 50))
    opcheck(library.invert, (case.slot, case.num_rows, True))
    cu_seqlens = torch.tensor([0, 30, 127], dtype=torch.int32, device=CUDA)
    opcheck(library.pad_index, (cu_seqlens, 100, 127))
    to_padded, to_rows = naive.pad_index(cu_seqlens, max_seqlen=100, num_rows=127)
    opcheck(library.move, (torch.randn(127, 24, device=CUDA, requires_grad=True), to_padded, to_rows))


# Inductor on torch 2.11 uses what torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_a_step_compiles() -> None:
    case = merge_case(129, 64, torch.bfloat16, device=CUDA)
    table, *rows = leaves(case)

    def step(table: Tensor, rows: list[Tensor]) -> Tensor:
        merged = ops.merge(table, case.ids, case.slot, rows, vocab=(case.vocab_start, case.vocab_size))
        return (merged.float() * 2).sum()

    expected = torch.autograd.grad(step(table, rows), [table, *rows])
    actual = torch.autograd.grad(torch.compile(step, fullgraph=True)(table, rows), [table, *rows])
    for got, want in zip(actual, expected, strict=True):
        assert torch.equal(got, want)


def test_forward_and_backward_replay_from_a_cuda_graph_with_new_placeholders() -> None:
    first, second = (merge_case(size, 128, torch.bfloat16, device=CUDA) for size in (1000, 1000))
    ids, slot, order = (torch.empty_like(first.ids) for _ in range(3))
    grad = torch.randn(1000, 128, device=CUDA).bfloat16()
    vocab = (first.vocab_start, first.vocab_size)

    def load(case: rows_cases.MergeCase, shift: int) -> None:
        ids.copy_(case.ids)
        slot.copy_(case.slot.roll(shift))
        order.copy_(ops.text_order(ids, slot))

    def step(table: Tensor, rows: list[Tensor]) -> list[Tensor]:
        out = ops.merge(table, ids, slot, rows, vocab=vocab, order=order)
        return [out.detach(), *torch.autograd.grad(out, [table, *rows], grad)]

    table, *rows = leaves(first)
    load(first, 0)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(table, rows)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(table, rows)
    for shift in (0, 17):
        load(second, shift)
        graph.replay()
        for got, want in zip(captured, step(table, rows), strict=True):
            assert torch.equal(got, want)
    ops.raise_faults(CUDA)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_faults_wait_for_the_synchronization_point_and_use_the_cpu_path_s_words() -> None:
    case = merge_case(127, 24, torch.float32, device=CUDA)
    bad = case.slot.clone()
    bad[40] = case.num_rows
    vocab = (case.vocab_start, case.vocab_size)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.merge(case.table, case.ids, bad, case.rows, vocab=vocab)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(ValueError, match="slot of shape") as on_gpu:
        ops.raise_faults(CUDA)
    with pytest.raises(ValueError, match="slot of shape") as on_cpu:
        ops.merge(case.table.cpu(), case.ids.cpu(), bad.cpu(), [part.cpu() for part in case.rows], vocab=vocab)
    assert str(on_gpu.value) == str(on_cpu.value)
    ops.raise_faults(CUDA)
