"""Attention as an autograd function over packed documents, on whichever backend suits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hetsched.kernels.attention import naive
from hetsched.kernels.attention.backends import Backend, choose, load_hopper
from hetsched.kernels.attention.task import AttentionTask


def attend(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    task: AttentionTask,
    *,
    scale: float | None = None,
    is_deterministic: bool = True,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of packed documents, differentiable in q, k and v.

    Args:
        q_THD: ``[T, H, D]``; a slice of a fused QKV is taken as it is.
        k_SKD, v_SKD: ``[S, K, D]``, of the same dtype.
        task: ranges and head counts, made once per microbatch.
        scale: factor of the scores, by default ``1 / sqrt(D)``.
        is_deterministic: False lets the backward add dq in any order where that is faster.
        backend: force one; by default the fastest that can run the inputs.

    Returns:
        output ``[T, H, D]`` and lse ``[H, T]`` (float32, natural log, not differentiable); rows without keys
        give 0 and -inf.

    Raises:
        ValueError: tensors that do not fit the task, or a forced backend that cannot run them.
    """
    chosen = choose(q_THD, forced=backend)
    result: tuple[Tensor, Tensor] = _Attend.apply(q_THD, k_SKD, v_SKD, task, scale, is_deterministic, chosen)
    return result


def forward_step(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    task: AttentionTask,
    *,
    carry: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """One step over some of the keys, without autograd: continue a float32 (output, lse), or start one.

    Args:
        q_THD, k_SKD, v_SKD, task, scale, backend: as in :func:`attend`.
        carry: output ``[T, H, D]`` and lse ``[H, T]`` over the keys of earlier steps. May be updated in place: use
            what is returned.
    """
    chosen = choose(q_THD, forced=backend)
    if chosen == "naive":
        task.check(q_THD, k_SKD, v_SKD)
        return naive.forward(q_THD, k_SKD, v_SKD, task.ranges, scale=scale, carry=carry)
    result: tuple[Tensor, Tensor] = _kernels(chosen).forward(q_THD, k_SKD, v_SKD, task, scale=scale, carry=carry)
    return result


def backward_step(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    statistics: tuple[Tensor, Tensor],
    task: AttentionTask,
    *,
    scale: float | None = None,
    dq_sum: Tensor | None = None,
    dkv_dtype: torch.dtype | None = None,
    is_deterministic: bool = True,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients over some of the keys, given the final (lse, delta) of all; their sums over steps are the gradients.

    Args:
        dout_THD: gradient of the output.
        q_THD, k_SKD, v_SKD, task, scale, is_deterministic, backend: as in :func:`attend`.
        statistics: lse and :func:`row_delta`, ``[H, T]``.
        dq_sum: float32 ``[T, H, D]`` to add dq to, in place.
        dkv_dtype: of dk and dv; float32 for partial sums.

    Returns:
        dq (``dq_sum`` if given), dk, dv.
    """
    chosen = choose(q_THD, forced=backend)
    if chosen == "naive":
        task.check(q_THD, k_SKD, v_SKD)
        dq, dk, dv = naive.backward(dout_THD, q_THD, k_SKD, v_SKD, *statistics, ranges=task.ranges, scale=scale)
        kv_dtype = dkv_dtype or k_SKD.dtype
        return dq.to(q_THD.dtype) if dq_sum is None else dq_sum.add_(dq), dk.to(kv_dtype), dv.to(kv_dtype)
    options: dict[str, Any] = {} if chosen == "triton" else {"is_deterministic": is_deterministic}
    inputs = (dout_THD, q_THD, k_SKD, v_SKD, *statistics)
    options |= {"task": task, "scale": scale, "dq_sum": dq_sum, "dkv_dtype": dkv_dtype}
    result: tuple[Tensor, Tensor, Tensor] = _kernels(chosen).backward(*inputs, **options)
    return result


def row_delta(out_THD: Tensor, dout_THD: Tensor, *, backend: Backend | None = None) -> Tensor:
    """``[H, T]``: the row sums of output times its gradient, in float32 (float64 for float64)."""
    if choose(out_THD, forced=backend) == "naive":
        return naive.delta(out_THD, dout_THD)
    result: Tensor = _kernels("triton").delta(out_THD, dout_THD)
    return result


def _kernels(backend: Backend) -> Any:
    if backend == "hopper":
        return load_hopper()
    from hetsched.kernels.attention import triton

    return triton


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_SKD: Tensor,
        v_SKD: Tensor,
        task: AttentionTask,
        scale: float | None,
        is_deterministic: bool,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward_step(q_THD, k_SKD, v_SKD, task, scale=scale, backend=backend)
        ctx.save_for_backward(q_THD, k_SKD, v_SKD, out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.options = (task, scale, is_deterministic, backend)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout_THD: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        q_THD, k_SKD, v_SKD, out, lse = ctx.saved_tensors
        task, scale, is_deterministic, backend = ctx.options
        statistics = (lse, row_delta(out, dout_THD, backend=backend))
        gradients = backward_step(
            *(dout_THD, q_THD, k_SKD, v_SKD, statistics, task),
            scale=scale,
            is_deterministic=is_deterministic,
            backend=backend,
        )
        return *gradients, None, None, None, None
