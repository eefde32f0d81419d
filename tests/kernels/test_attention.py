"""The naive version against softmax by definition, and the portable kernels in the interpreter against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hetsched.kernels.attention import attend, naive, triton
from hetsched.kernels.attention.backends import Backend, choose, load_hopper
from hetsched.kernels.attention.ranges import Block, KeyRanges, packed_ranges, sharded_ranges
from hetsched.kernels.attention.task import AttentionTask
from hetsched.kernels.attention.triton import KernelShape, Shapes
from hetsched.kernels.attention.work import TileShape
from tests.kernels.attention_cases import Case, check, inputs, lse_error, relative, task_of

# The interpreter turns loop bounds read from memory into ints in a way that numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16 and 32 rows, so that short documents have many, and the interpreter little to do."""
    shape = KernelShape(TileShape(32, 16), 4, 1)
    tall = KernelShape(TileShape(16, 32), 4, 1)
    monkeypatch.setattr(triton, "shapes_for", lambda head_dim, element_bytes: Shapes(shape, tall, shape))


def by_definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of one document and query head as it is written in a book."""
    out, lse = torch.zeros_like(q), torch.full((len(q),), -math.inf, dtype=q.dtype)
    for row in range(len(q)):
        scores = [float(q[row] @ k[key]) / math.sqrt(q.shape[1]) for key in range(len(k)) if mask[row, key]]
        if scores:
            total = sum(math.exp(score) for score in scores)
            lse[row] = math.log(total)
            values = [v[key] for key in range(len(k)) if mask[row, key]]
            out[row] = sum(math.exp(score) / total * value for score, value in zip(scores, values, strict=True))
    return out, lse


def test_naive_is_softmax_by_definition() -> None:
    lengths, window = (5, 0, 3), 3
    ranges = packed_ranges(lengths, window=window)
    q, k, v = (torch.randn(8, heads, 4, dtype=torch.float64) for heads in (4, 2, 2))
    out, lse = naive.forward(q, k, v, ranges)
    for start, length in ((0, 5), (5, 3)):
        rows = slice(start, start + length)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        for head in range(4):
            expected, total = by_definition(
                q[rows, head], k[rows, head // 2], v[rows, head // 2], (distance >= 0) & (distance < window)
            )
            torch.testing.assert_close(out[rows, head], expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(lse[head, rows], total, rtol=1e-12, atol=1e-12)


def test_naive_backward_is_the_gradient_of_its_forward() -> None:
    ranges = sharded_ranges(
        [np.array([0, 2, 5]), np.arange(4)], [np.arange(1, 6), np.arange(3)], blocks=[Block(1, 1, 3)]
    )
    q = torch.randn(7, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(8, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    dout = torch.randn(7, 4, 8, dtype=torch.float64)
    out, lse = naive.forward(q, k, v, ranges)
    expected = torch.autograd.grad(out, (q, k, v), dout)
    got = naive.backward(dout, q, k, v, lse, naive.delta(out, dout), ranges=ranges)
    for mine, exact in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)
    assert out[0].isfinite().all()


MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"is_causal": False},
    "window": {"window": 20},
    "blocks": {"blocks": [Block(2, 10, 50)], "window": 30},
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
def test_kernels_equal_float64_for_every_mask_and_group(heads: tuple[int, int], mask: str) -> None:
    check(Case((33, 0, 70, 1), *heads, 32, torch.float32, MASKS[mask]), "triton")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("head_dim", "dtype"), [(16, torch.bfloat16), (48, torch.float16)])
def test_kernels_equal_float64_in_16_bits_and_for_odd_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    check(Case((20, 1), 8, 1, head_dim, dtype), "triton")


@pytest.mark.parametrize("lengths", [(127, 1, 0, 128), (129,)])
def test_kernels_equal_float64_at_the_edges_of_real_tiles(lengths: tuple[int, ...]) -> None:
    check(Case(lengths, 1, 1, 64, torch.float32), "triton")


def test_kernels_equal_float64_on_a_long_document(monkeypatch: pytest.MonkeyPatch) -> None:
    large = KernelShape(TileShape(128, 128), 4, 1)
    monkeypatch.setattr(triton, "shapes_for", lambda head_dim, element_bytes: Shapes(large, large, large))
    check(Case((1, 1000), 1, 1, 16, torch.float32), "triton")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_steps_over_shards_equal_the_whole(backend: Any) -> None:
    case = Case((45, 3), 4, 2, 16, torch.float32)
    x, whole = inputs(case), [np.arange(45), np.arange(3)]
    truth = x.double()
    out, lse = naive.forward(truth.q, truth.k, truth.v, case.ranges)
    expected = naive.backward(
        truth.dout, truth.q, truth.k, truth.v, lse, naive.delta(out, truth.dout), ranges=case.ranges
    )
    carry = (torch.zeros_like(x.q), torch.full((4, 48), -math.inf))
    rows, tasks = [], []
    for part in range(3):
        shard = [positions[(positions // 7) % 3 == part] for positions in whole]
        rows.append(torch.from_numpy(np.concatenate([shard[0], 45 + shard[1]])))
        tasks.append(task_of(case, sharded_ranges(whole, shard), x.q.device))
        carry = attend.forward_step(x.q, x.k[rows[-1]], x.v[rows[-1]], tasks[-1], carry=carry, backend=backend)
    assert relative(carry[0], out) < 2e-6
    assert lse_error(carry[1], lse) < 1e-5
    statistics = (carry[1], attend.row_delta(carry[0], x.dout, backend=backend))
    dq, dk, dv = torch.zeros_like(x.q), torch.zeros_like(x.k), torch.zeros_like(x.v)
    for task, row in zip(tasks, rows, strict=True):
        _, part_k, part_v = attend.backward_step(
            x.dout, x.q, x.k[row], x.v[row], statistics, task, dq_sum=dq, dkv_dtype=torch.float32, backend=backend
        )
        dk[row] += part_k
        dv[row] += part_v
    for got, exact in zip((dq, dk, dv), expected, strict=True):
        assert relative(got, exact) < 6e-6


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_rows_without_keys_give_zero_and_no_gradient(backend: Any) -> None:
    case = Case((20, 4), 2, 1, 16)
    ranges = sharded_ranges([np.arange(20), np.arange(4)], [np.arange(9, 20), np.arange(0)])
    x = inputs(case, key_rows=11)
    task = task_of(case, ranges, x.q.device)
    out, lse = attend.forward_step(x.q, x.k, x.v, task, backend=backend)
    blind = torch.tensor([*range(9), 20, 21, 22, 23])
    assert (out[blind] == 0).all()
    assert (lse[:, blind] == -math.inf).all()
    delta = attend.row_delta(out, x.dout, backend=backend)
    dq, dk, dv = attend.backward_step(x.dout, x.q, x.k, x.v, (lse, delta), task, backend=backend)
    assert (dq[blind] == 0).all()
    for gradient in (dq, dk, dv):
        assert gradient.isfinite().all()


@pytest.mark.usefixtures("small_tiles")
def test_nothing_leaks_between_documents() -> None:
    case = Case((20, 9, 33), 2, 1, 16)
    x = inputs(case)
    for leaf in (x.q, x.k, x.v, x.dout):
        leaf[20:29] = float("nan")
    task = task_of(case, case.ranges, x.q.device)
    out, lse = attend.forward_step(x.q, x.k, x.v, task, backend="triton")
    delta = attend.row_delta(out, x.dout, backend="triton")
    gradients = attend.backward_step(x.dout, x.q, x.k, x.v, (lse, delta), task, backend="triton")
    for result in (out, lse.T, *gradients):
        assert not result[:20].isnan().any()
        assert not result[29:].isnan().any()


def _shifted(ranges: KeyRanges) -> KeyRanges:
    hi = np.minimum(ranges.hi + 1, 40).astype(np.int32)
    return KeyRanges(ranges.spans, ranges.lo, hi, "ranges", ranges.num_query_rows, ranges.num_key_rows)


def _lost_tile(ranges: KeyRanges) -> KeyRanges:
    lo = np.minimum(np.where(np.arange(40) >= 36, 16, 0), ranges.hi).astype(np.int32)
    return KeyRanges(ranges.spans, lo, ranges.hi, "ranges", ranges.num_query_rows, ranges.num_key_rows)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("mutate", [_shifted, _lost_tile])
def test_a_mask_off_by_one_or_a_lost_tile_would_be_seen(
    mutate: Callable[[KeyRanges], KeyRanges], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.kernels.attention_cases as cases

    monkeypatch.setattr(
        cases,
        "task_of",
        lambda case, ranges, device: AttentionTask(mutate(ranges), num_heads=2, num_kv_heads=2, device=device),
    )
    with pytest.raises(AssertionError):
        check(Case((40,), 2, 2, 16), "triton")


@pytest.mark.usefixtures("small_tiles")
def test_a_wrong_scale_or_lse_of_one_step_would_be_seen() -> None:
    case = Case((40,), 2, 2, 16)
    x, task = inputs(case), task_of(case, case.ranges, torch.device("cpu"))
    out, lse = naive.forward(x.q, x.k, x.v, case.ranges)
    wrong, _ = triton.forward(x.q, x.k, x.v, task, scale=1.02 / 4)
    assert relative(wrong, out.double()) > 100 * 4e-6
    delta = naive.delta(out, x.dout)
    good = naive.backward(x.dout, x.q, x.k, x.v, lse, delta, ranges=case.ranges)
    for mine, exact in zip(triton.backward(x.dout, x.q, x.k, x.v, lse - 0.01, delta, task=task), good, strict=True):
        assert relative(mine, exact) > 100 * 6e-6


@pytest.mark.usefixtures("small_tiles")
def test_attend_is_differentiable_and_takes_a_stride_0_gradient() -> None:
    case = Case((17, 0, 5), 4, 2, 16)
    x = inputs(case)
    task = task_of(case, case.ranges, x.q.device)
    results = []
    backends: tuple[Backend, ...] = ("naive", "triton")
    for backend in backends:
        leaves = [leaf.clone().requires_grad_() for leaf in (x.q, x.k, x.v)]
        out, _ = attend.attend(leaves[0], leaves[1], leaves[2], task, backend=backend)
        results.append(torch.autograd.grad(out.sum(), leaves))
    for mine, exact in zip(results[1], results[0], strict=True):
        assert relative(mine, exact) < 6e-6


def test_tensors_that_do_not_fit_the_task_are_refused() -> None:
    case = Case((4,), 4, 2, 16)
    x = inputs(case)
    task = task_of(case, case.ranges, x.q.device)
    with pytest.raises(ValueError, match=r"k is \(4, 4, 16\)"):
        attend.attend(x.q, x.q, x.v, task)
    with pytest.raises(ValueError, match="does not divide"):
        AttentionTask(case.ranges, num_heads=3, num_kv_heads=2)


def test_the_cpu_runs_the_naive_version_and_refuses_the_hopper_one() -> None:
    q = torch.zeros(1, 2, 64)
    assert choose(q) == "naive"
    with pytest.raises(ValueError, match="not sm_90"):
        choose(q, forced="hopper")


def test_a_missing_private_call_is_a_visible_warning_and_a_fallback() -> None:
    def load() -> Any:
        raise ImportError("create_async_tma_reduce is gone")

    load_hopper.cache_clear()
    with pytest.warns(RuntimeWarning, match="falls back to the portable kernels.*create_async_tma_reduce"):
        assert load_hopper(load) is None
    load_hopper.cache_clear()
