"""Packed attention problems, and checks of a backend against the naive version in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetsched.kernels.attention import attend, naive
from hetsched.kernels.attention.backends import Backend
from hetsched.kernels.attention.ranges import KeyRanges, packed_ranges
from hetsched.kernels.attention.task import AttentionTask

TOLERANCE = {torch.float32: 4e-6, torch.float16: 1.2e-3, torch.bfloat16: 9e-3}
"""Relative error in the Frobenius norm that rounding explains, forward and gradients."""


@dataclass(frozen=True)
class Case:
    """Documents, what they see, and the heads; ``mask`` holds arguments of packed_ranges."""

    lengths: tuple[int, ...]
    num_heads: int = 2
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    mask: dict[str, Any] = field(default_factory=dict)

    @property
    def ranges(self) -> KeyRanges:
        return packed_ranges(self.lengths, **self.mask)


@dataclass(frozen=True)
class Inputs:
    """Random q, k, v and output gradient of a case."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor

    def double(self) -> Inputs:
        return Inputs(*(x.double() for x in (self.q, self.k, self.v, self.dout)))


def inputs(case: Case, *, device: str = "cpu", seed: int = 0, key_rows: int | None = None) -> Inputs:
    """Fresh normal inputs; ``key_rows`` where keys are not as many as queries."""
    generator = torch.Generator(device).manual_seed(seed)
    rows = sum(case.lengths)

    def normal(num_rows: int, heads: int) -> Tensor:
        shape = (num_rows, heads, case.head_dim)
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(case.dtype)

    keys = rows if key_rows is None else key_rows
    return Inputs(
        normal(rows, case.num_heads), normal(keys, case.num_kv_heads), normal(keys, case.num_kv_heads),
        normal(rows, case.num_heads),
    )  # fmt: skip


def task_of(case: Case, ranges: KeyRanges, device: torch.device) -> AttentionTask:
    return AttentionTask(ranges, num_heads=case.num_heads, num_kv_heads=case.num_kv_heads, device=device)


def relative(got: Tensor, expected: Tensor, *, floor: float = 1e-30) -> float:
    """Error over the norm, or over ``floor`` if that is larger; infinite for NaN, so that it never passes."""
    got, expected = got.detach().double(), expected.detach().double()
    error = float((got - expected).norm() / expected.norm().clamp_min(floor))
    return error if error == error else float("inf")


def lse_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference, equal infinities counting as equal."""
    difference = torch.where(got.double() == expected, 0.0, (got.double() - expected).abs())
    return float(difference.max()) if difference.numel() else 0.0


def check(case: Case, backend: Backend, *, device: str = "cpu", seed: int = 0, is_deterministic: bool = True) -> None:
    """Output, lse and all gradients of ``backend`` agree with the naive version in float64."""
    x, ranges = inputs(case, device=device, seed=seed), case.ranges
    truth, task = x.double(), task_of(case, ranges, x.q.device)
    out, lse = naive.forward(truth.q, truth.k, truth.v, ranges)
    delta = naive.delta(out, truth.dout)
    gradients = naive.backward(truth.dout, truth.q, truth.k, truth.v, lse, delta, ranges=ranges)
    poison(device)
    got_out, got_lse = attend.forward_step(x.q, x.k, x.v, task, backend=backend)
    got_delta = attend.row_delta(got_out, x.dout, backend=backend)
    poison(device)
    got = attend.backward_step(
        *(x.dout, x.q, x.k, x.v, (got_lse, got_delta), task), backend=backend, is_deterministic=is_deterministic
    )
    tolerance = TOLERANCE[case.dtype]
    assert relative(got_out, out) < tolerance, case
    assert lse_error(got_lse, lse) < 1e-4, case
    # a gradient can vanish, as that of scores does in a window of 1: the output's gradient gives the size then
    floor = max(1e-30, 0.1 * float(truth.dout.norm()))
    for name, mine, expected in zip(("dq", "dk", "dv"), got, gradients, strict=True):
        assert relative(mine, expected, floor=floor) < 1.5 * tolerance, (name, case)


def poison(device: str) -> None:
    """Leave NaN in memory that the caching allocator hands out next, so that unwritten results show."""
    if device != "cpu":
        for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
            del_me = [torch.full((size,), float("nan"), device=device) for _ in range(4)]
            del del_me


def dense(ranges: KeyRanges) -> NDArray[np.bool_]:
    """The mask that the ranges describe, query rows by key rows."""
    mask = np.zeros((ranges.num_query_rows, ranges.num_key_rows), bool)
    for span in ranges.spans:
        for row in range(span.q_start, span.q_start + span.num_queries):
            mask[row, span.k_start + ranges.lo[row] : span.k_start + ranges.hi[row]] = True
    return mask
