"""The attention kernels on a GPU: both backends against float64, peers of the same precision, races and isolation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetsched.kernels.attention import attend, naive
from hetsched.kernels.attention.backends import Backend, choose, load_hopper
from hetsched.kernels.attention.ranges import Block, KeyRanges, packed_ranges, sharded_ranges
from tests.kernels.attention_cases import Case, Inputs, check, inputs, lse_error, poison, relative, task_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BACKENDS: tuple[Backend, ...] = ("triton", "hopper")
NUM_REPEATS = 60
FUZZ = (0, 1, 127, 128, 129, 1000, 2500)
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"is_causal": False},
    "window 1": {"window": 1},
    "window 200": {"window": 200},
    "blocks": {"blocks": [Block(5, 100, 740), Block(5, 900, 901)], "window": 300},
}


def needs(backend: Backend) -> None:
    if backend == "hopper" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs sm_90")


@pytest.mark.parametrize(
    ("heads", "mask"), [*(((16, 2), mask) for mask in MASKS), ((4, 4), "full"), ((4, 1), "blocks")]
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_mask_and_group_equals_float64(
    head_dim: int, backend: Backend, heads: tuple[int, int], mask: str
) -> None:
    needs(backend)
    case = Case((129, 0, 1, 127, 128, 1000), *heads, head_dim, torch.bfloat16, MASKS[mask])
    check(case, backend, device="cuda")
    check(case, backend, device="cuda", seed=1, is_deterministic=False)


@pytest.mark.parametrize("head_dim", [96, 256])
def test_other_head_dims_work_on_the_portable_kernels(head_dim: int) -> None:
    check(Case((300, 1, 129), 4, 2, head_dim, torch.bfloat16), "triton", device="cuda")


def _float64(x: Inputs, ranges: KeyRanges) -> tuple[torch.Tensor, ...]:
    """Output, its lse, dq, dk and dv."""
    truth = x.double()
    out, lse = naive.forward(truth.q, truth.k, truth.v, ranges)
    delta = naive.delta(out, truth.dout)
    return out, lse, *naive.backward(truth.dout, truth.q, truth.k, truth.v, lse, delta, ranges=ranges)


def _ours(x: Inputs, case: Case, backend: Backend, is_deterministic: bool) -> tuple[torch.Tensor, ...]:
    leaves = [leaf.clone().requires_grad_() for leaf in (x.q, x.k, x.v)]
    task = task_of(case, case.ranges, x.q.device)
    out, lse = attend.attend(leaves[0], leaves[1], leaves[2], task, is_deterministic=is_deterministic, backend=backend)
    return out, lse, *torch.autograd.grad(out, leaves, x.dout)


def _varlen(x: Inputs, case: Case) -> tuple[torch.Tensor, ...]:
    """The same by varlen_attn: FlashAttention-2 in the same precision."""
    from torch.nn.attention.varlen import varlen_attn

    group = case.num_heads // case.num_kv_heads
    leaves = [leaf.clone().requires_grad_() for leaf in (x.q, x.k, x.v)]
    k, v = (leaf.repeat_interleave(group, 1) for leaf in leaves[1:])
    bounds = torch.tensor([0, *itertools.accumulate(case.lengths)], device="cuda", dtype=torch.int32)
    longest, window = max(case.lengths), case.mask.get("window", 0) - 1
    out = varlen_attn(leaves[0], k, v, bounds, bounds, longest, longest, window_size=(window, 0))
    assert isinstance(out, torch.Tensor)
    return out, *torch.autograd.grad(out, leaves, x.dout)


def _sdpa(x: Inputs, case: Case, kind: SDPBackend) -> tuple[torch.Tensor, ...]:
    """The same by SDPA, for documents of one length."""
    batch = len(case.lengths)

    def batched(rows: torch.Tensor) -> torch.Tensor:
        return rows.view(batch, -1, *rows.shape[1:]).transpose(1, 2)

    leaves = [leaf.clone().requires_grad_() for leaf in (x.q, x.k, x.v)]
    q, k, v = (batched(leaf) for leaf in leaves)
    with sdpa_kernel(kind):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(0, 1), *torch.autograd.grad(out, leaves, batched(x.dout))


def _assert_no_worse(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...], x: Inputs, case: Case) -> None:
    out, lse, *gradients = _float64(x, case.ranges)
    assert lse_error(ours[1], lse) < 1e-4, case
    for name, our, their, exact in zip(
        ("out", "dq", "dk", "dv"), (ours[0], *ours[2:]), theirs, (out, *gradients), strict=True
    ):
        assert relative(our, exact) <= 1.1 * relative(their, exact), (name, case)


@pytest.mark.parametrize("is_deterministic", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (16, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_fuzzed_lengths_have_no_larger_errors_than_torch_in_the_same_precision(
    backend: Backend, heads: tuple[int, int], is_deterministic: bool
) -> None:
    needs(backend)
    generator = np.random.default_rng(heads[1])
    for seed in range(6):
        lengths = (*(int(n) for n in generator.choice(FUZZ, size=generator.integers(1, 7))), 2500)
        mask: dict[str, Any] = {"window": 200} if seed % 3 == 2 else {}
        case = Case(lengths, *heads, (128, 64)[seed % 2], (torch.bfloat16, torch.float16)[seed % 4 == 3], mask)
        x = inputs(case, device="cuda", seed=seed)
        poison("cuda")
        _assert_no_worse(_ours(x, case, backend, is_deterministic), _varlen(x, case), x, case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_scale_a_wrong_lse_or_a_mask_off_by_one_would_be_seen(backend: Backend) -> None:
    needs(backend)
    case, wider = (Case((1024, 1024), 4, 4, 128, torch.bfloat16, {"window": window}) for window in (200, 201))
    x = inputs(case, device="cuda")
    theirs = _varlen(x, case)
    _assert_no_worse(_ours(x, case, backend, True), theirs, x, case)
    with pytest.raises(AssertionError):
        _assert_no_worse(_ours(x, wider, backend, True), theirs, x, case)
    task = task_of(case, case.ranges, x.q.device)
    out, lse = attend.forward_step(x.q, x.k, x.v, task, backend=backend)
    wrong_out, wrong_lse = attend.forward_step(x.q, x.k, x.v, task, scale=1.01 / 128**0.5, backend=backend)
    delta = attend.row_delta(out, x.dout, backend=backend)
    for output, statistic in ((wrong_out, lse), (out, wrong_lse), (out, lse - 0.01)):
        gradients = attend.backward_step(x.dout, x.q, x.k, x.v, (statistic, delta), task, backend=backend)
        with pytest.raises(AssertionError):
            _assert_no_worse((output, lse, *gradients), theirs, x, case)


@pytest.mark.parametrize("kind", [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_are_no_larger_than_those_of_sdpa(backend: Backend, kind: SDPBackend) -> None:
    needs(backend)
    case = Case((1024, 1024), 4, 4, 128, torch.bfloat16)
    x = inputs(case, device="cuda")
    for is_deterministic in (True, False):
        _assert_no_worse(_ours(x, case, backend, is_deterministic), _sdpa(x, case, kind), x, case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_are_bitwise_equal_by_default(backend: Backend) -> None:
    needs(backend)
    case = Case((1000, 129, 2500), 8, 2, 128, torch.bfloat16)
    x = inputs(case, device="cuda")
    task = task_of(case, case.ranges, x.q.device)
    results = []
    for _ in range(5):
        leaves = [leaf.clone().requires_grad_() for leaf in (x.q, x.k, x.v)]
        out, lse = attend.attend(leaves[0], leaves[1], leaves[2], task, backend=backend)
        results.append([out.detach(), lse, *torch.autograd.grad(out, leaves, x.dout)])
    for repeat in results[1:]:
        for first, again in zip(results[0], repeat, strict=True):
            assert torch.equal(first, again)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_leaks_between_documents(backend: Backend) -> None:
    needs(backend)
    case = Case((129, 200, 1000), 4, 2, 128, torch.bfloat16)
    x = inputs(case, device="cuda")
    for leaf in (x.q, x.k, x.v, x.dout):
        leaf[129:329] = float("nan")
    task = task_of(case, case.ranges, x.q.device)
    out, lse = attend.forward_step(x.q, x.k, x.v, task, backend=backend)
    delta = attend.row_delta(out, x.dout, backend=backend)
    for is_deterministic in (True, False):
        gradients = attend.backward_step(
            *(x.dout, x.q, x.k, x.v, (lse, delta), task), backend=backend, is_deterministic=is_deterministic
        )
        for result in (out, lse.T, *gradients):
            assert not result[:129].isnan().any()
            assert not result[329:].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_shards", [2, 3])
def test_steps_with_carry_equal_the_whole(num_shards: int, backend: Backend) -> None:
    needs(backend)
    case = Case((1000, 1, 300, 127), 8, 2, 128, torch.bfloat16)
    x = inputs(case, device="cuda")
    ranges = case.ranges
    out, lse = naive.forward(x.q.double(), x.k.double(), x.v.double(), ranges)
    shards = [
        [np.arange(length)[(np.arange(length) // 100) % num_shards == rank] for length in case.lengths]
        for rank in range(num_shards)
    ]
    starts = np.cumsum([0, *case.lengths[:-1]])
    whole = [np.arange(length) for length in case.lengths]
    carry = (torch.zeros_like(x.q, dtype=torch.float32), torch.full_like(lse, -torch.inf, dtype=torch.float32))
    tasks, rows = [], []
    for shard in shards:
        row = np.concatenate([start + positions for start, positions in zip(starts, shard, strict=True)])
        rows.append(torch.from_numpy(row).cuda())
        tasks.append(task_of(case, sharded_ranges(whole, shard), x.q.device))
        carry = attend.forward_step(x.q, x.k[rows[-1]], x.v[rows[-1]], tasks[-1], carry=carry, backend=backend)
    assert relative(carry[0], out) < 4e-3
    assert lse_error(carry[1], lse) < 1e-4
    _check_step_gradients(x, carry, tasks, rows, backend)


def _check_step_gradients(x: Inputs, carry: Any, tasks: list[Any], rows: list[torch.Tensor], backend: Backend) -> None:
    whole = packed_ranges([1000, 1, 300, 127])
    truth = x.double()
    out, lse = naive.forward(truth.q, truth.k, truth.v, whole)
    expected = naive.backward(*(truth.dout, truth.q, truth.k, truth.v, lse, naive.delta(out, truth.dout)), ranges=whole)
    delta = attend.row_delta(carry[0], x.dout.float(), backend="triton")
    for is_deterministic in (True, False):
        dq = torch.zeros_like(x.q, dtype=torch.float32)
        dk, dv = torch.zeros_like(x.k, dtype=torch.float32), torch.zeros_like(x.v, dtype=torch.float32)
        for task, row in zip(tasks, rows, strict=True):
            _, part_k, part_v = attend.backward_step(
                *(x.dout, x.q, x.k[row], x.v[row], (carry[1], delta), task), dq_sum=dq, dkv_dtype=torch.float32,
                is_deterministic=is_deterministic, backend=backend,
            )  # fmt: skip
            dk[row] += part_k
            dv[row] += part_v
        for got, exact in zip((dq, dk, dv), expected, strict=True):
            assert relative(got, exact) < 1e-2


def repeat(_: int, backend: Backend, head_dim: int) -> None:
    """Forward and backward of kernels that run for long, again and again."""
    case = Case((8192,), 8, 8, head_dim, torch.bfloat16)
    x = inputs(case, device="cuda")
    task, expected = task_of(case, case.ranges, x.q.device), None
    for _ in range(NUM_REPEATS):
        out, lse = attend.forward_step(x.q, x.k, x.v, task, backend=backend)
        statistics = (lse, attend.row_delta(out, x.dout, backend=backend))
        gradients = attend.backward_step(x.dout, x.q, x.k, x.v, statistics, task, backend=backend)
        results = (out, lse, *gradients)
        expected = results if expected is None else expected
        for name, one, other in zip(("out", "lse", "dq", "dk", "dv"), results, expected, strict=True):
            assert torch.equal(one, other), f"{name} has {int(one.isnan().sum())} NaN"


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_that_are_stopped_and_go_on_keep_their_bits(backend: Backend, head_dim: int) -> None:
    """The GPU gives each of several processes its turn, and stops kernels that run when it ends."""
    needs(backend)
    spawn(repeat, args=(backend, head_dim), nprocs=4)  # type: ignore[no-untyped-call]


def test_a_slice_of_a_fused_projection_is_taken_as_it_is() -> None:
    case = Case((300, 129), 4, 2, 128, torch.bfloat16)
    x = inputs(case, device="cuda")
    fused = torch.cat([x.q, x.k, x.v], dim=1)
    q, k, v = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    task = task_of(case, case.ranges, fused.device)
    for backend in BACKENDS:
        if backend == "triton" or choose(q) == "hopper":
            expected = attend.forward_step(x.q, x.k, x.v, task, backend=backend)[0]
            assert torch.equal(attend.forward_step(q, k, v, task, backend=backend)[0], expected)


def test_hopper_kernels_are_chosen_where_they_run() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs sm_90")
    q = torch.empty(1, 4, 128, device="cuda", dtype=torch.bfloat16)
    assert load_hopper() is not None
    assert choose(q) == "hopper"
    assert choose(q.expand(1, 4, 128)[..., :96]) == "triton"
    with pytest.raises(ValueError, match="head dim 96"):
        choose(q[..., :96], forced="hopper")
