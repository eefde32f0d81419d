"""Launches of the Gluon kernels for Hopper: the same calls as the portable module's, on sm_90 and 16-bit inputs."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from hetsched.kernels.attention import hopper_backward, hopper_dq, hopper_forward
from hetsched.kernels.attention.hopper_support import ragged_rows
from hetsched.kernels.attention.rows import scale_kernel
from hetsched.kernels.attention.staging import Staged
from hetsched.kernels.attention.task import AttentionTask
from hetsched.kernels.attention.triton import fresh, outputs, packed_heads, padded_statistics, softmax_scale
from hetsched.kernels.attention.triton_common import MASK_KINDS
from hetsched.kernels.attention.work import TileShape

HEAD_DIMS = (64, 128)
LOG2E = 1.4426950408889634
NO_STAGE = (None,) * 5
FORWARD, _DKV, _DQ = TileShape(128, 128), TileShape(64, 128), TileShape(128, 128)


def forward(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    task: AttentionTask,
    *,
    scale: float | None = None,
    carry: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`hetsched.kernels.attention.triton.forward`, for head dims 64 and 128 in bfloat16 or float16."""
    task.check(q_THD, k_SKD, v_SKD)
    table = task.table("queries", FORWARD)
    out, lse = carry if carry is not None else outputs(q_THD, table.is_complete)
    if table.num_items:
        q, k, v = packed_heads(q_THD), packed_heads(k_SKD), packed_heads(v_SKD)
        # with a carry, rows go to float32 memory by pointer, and the descriptor only gives the type
        target = q if carry is not None else out
        hopper_forward.forward_kernel[(table.workers.shape[0],)](
            *(rows_of(q, 128), rows_of(k, 128), rows_of(v, 128), rows_of(target, 64), out, lse, *task.bounds),
            *(table.tiles, table.workers, *NO_STAGE, q.shape[0], table.workers.shape[1], 0, 0),
            softmax_scale(q, scale) * LOG2E,
            HEADS=task.num_heads,
            CARRY=carry is not None,
            PULLED=0,
            **constants(q, task),
        )
    return out, lse


def backward(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    lse_HT: Tensor,
    delta_HT: Tensor,
    *,
    task: AttentionTask,
    scale: float | None = None,
    dq_sum: Tensor | None = None,
    dkv_dtype: torch.dtype | None = None,
    is_deterministic: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`hetsched.kernels.attention.triton.backward`.

    Args:
        is_deterministic: False allows dq to be computed in the dkv kernel and added in the order in which programs
            arrive, where that is faster: five products a tile pair instead of seven, and repeats differ in the
            last bits.
    """
    task.check(q_THD, k_SKD, v_SKD)
    q, k, v = packed_heads(q_THD), packed_heads(k_SKD), packed_heads(v_SKD)
    factor = softmax_scale(q, scale)
    inputs = (q, k, v, dout_THD.contiguous(), *padded_statistics(lse_HT, delta_HT, task, factor))
    if is_deterministic or not _is_fused_faster(q, task):
        dk, dv = dkv_of(inputs, task, factor, dtype=dkv_dtype)
        return dq_of(inputs, task, factor, dq_sum=dq_sum), dk, dv
    unscaled = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    dk, dv = dkv_of(inputs, task, factor, dtype=dkv_dtype, unscaled_dq=unscaled)
    dq = dq_sum if dq_sum is not None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if dq.numel():
        scale_kernel[(triton.cdiv(dq.numel(), 4096),)](
            unscaled, dq, dq.numel(), factor, ACCUMULATE=dq_sum is not None, VALUES=4096
        )
    return dq, dk, dv


def _is_fused_faster(q_THD: Tensor, task: AttentionTask) -> bool:
    """Measured on H200: with head dim 64, GQA or short documents, dq on its own is as fast or faster."""
    is_plain = task.ranges.kind != "ranges" and task.num_heads == task.num_kv_heads
    longest = max((span.num_queries for span in task.ranges.spans), default=0)
    return is_plain and q_THD.shape[-1] == 128 and longest >= 2048


def dkv_of(
    inputs: tuple[Tensor, ...],
    task: AttentionTask,
    factor: float,
    *,
    dtype: torch.dtype | None = None,
    unscaled_dq: Tensor | None = None,
    staged: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """dk and dv; adds dq, but for its factor, to ``unscaled_dq`` if there is one.

    Args:
        inputs: q, k, v, dout, and lse and delta as ``padded_statistics`` gives them.
        task: of all queries that see these keys; those in ``staged`` come first, q and dout have the others.
        factor: of the scores.
        dtype: of dk and dv.
        unscaled_dq: float32, of q's shape; none with ``staged``.
        staged: more queries and gradients of their outputs, ``[rows, H, D]``.
    """
    q, k, v, dout, lse, delta = inputs
    table = task.table("keys", _DKV)
    make = torch.empty if table.is_complete else torch.zeros
    dkv = make(2, *k.shape, dtype=dtype or k.dtype, device=k.device)
    if table.num_items:
        dq_rows = None if unscaled_dq is None else ragged_rows(unscaled_dq.flatten(1), 64, q.shape[-1] // 2)
        hopper_backward.dkv_kernel[(table.workers.shape[0],)](
            *(rows_of(q, 64), rows_of(dout, 64), rows_of(k, 128), rows_of(v, 128)),
            *(_flat_rows(lse), _flat_rows(delta), dq_rows, dkv),
            *(task.seen_by if task.ranges.kind == "ranges" else None, table.tiles, table.workers),
            *((rows_of(staged[0], 64), rows_of(staged[1], 64)) if staged is not None else (None, None)),
            *(lse.shape[1], k.shape[0], table.workers.shape[1], staged[0].shape[0] if staged is not None else 0),
            factor * LOG2E,
            KV_HEADS=task.num_kv_heads,
            WITH_DQ=unscaled_dq is not None,
            PULLED=staged is not None,
            **constants(q, task),
        )
    return dkv[0], dkv[1]


def dq_of(
    inputs: tuple[Tensor, ...],
    task: AttentionTask,
    factor: float,
    *,
    dq_sum: Tensor | None = None,
    staged: Staged | None = None,
) -> Tensor:
    """dq, added to ``dq_sum`` if there is one.

    Args:
        inputs: as for :func:`dkv_of`.
        task: of the queries over the keys; those in ``staged`` come first, k and v have the others.
        factor: of the scores.
        dq_sum: float32 ``[T, H, D]``.
        staged: more keys and values; their copies are enqueued already.
    """
    q, k, v, dout, lse, delta = inputs
    table = task.table("queries", _DQ)
    dq = dq_sum if dq_sum is not None else fresh(q, q.dtype, table.is_complete)
    if table.num_items:
        stage, numbers, heads = stage_arguments(staged)
        hopper_dq.dq_kernel[(table.workers.shape[0],)](
            *(rows_of(q, 128), rows_of(dout, 128), rows_of(k, 128), rows_of(v, 128), lse, delta, dq, *task.bounds),
            *(table.tiles, table.workers, *stage, lse.shape[1], table.workers.shape[1], *numbers),
            *(factor * LOG2E, factor),
            HEADS=task.num_heads,
            ACCUMULATE=dq_sum is not None,
            PULLED=heads,
            **constants(q, task),
        )
    return dq


def stage_arguments(staged: Staged | None) -> tuple[tuple[Any, ...], tuple[int, int], int]:
    """What kernels that read keys are told of a stage: tensors, where counting and own rows begin, and PULLED."""
    if staged is None:
        return NO_STAGE, (0, 0), 0
    k, v = staged.stage.flatten(0, 1).unbind(1)
    tensors = (rows_of(k, 128), rows_of(v, 128), staged.needs, staged.counter, staged.lost)
    return tensors, (staged.landed, staged.stage.shape[1]), staged.stage.shape[3]


def _flat_rows(x: Tensor) -> TensorDescriptor:
    """Runs of 64 values."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
    return TensorDescriptor.from_tensor(x.flatten(), [64], layout)


def rows_of(x_THD: Tensor, rows: int) -> TensorDescriptor:
    """Ragged boxes of ``rows`` rows and one head."""
    num_rows, num_heads, head_dim = x_THD.shape
    return ragged_rows(x_THD.as_strided((num_rows, num_heads * head_dim), (x_THD.stride(0), 1)), rows, head_dim)


def constants(q_THD: Tensor, task: AttentionTask) -> dict[str, int]:
    """What all kernels are compiled for."""
    return {
        "GROUP": task.num_heads // task.num_kv_heads,
        "D": q_THD.shape[-1],
        "MASK": MASK_KINDS[task.ranges.kind],
        "num_warps": 4,
    }
