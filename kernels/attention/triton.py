"""Launches of the portable Triton kernels: forward and backward over any ranges, GQA included."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from hetsched.kernels.attention import work
from hetsched.kernels.attention.rows import delta_kernel, pad_statistics_kernel
from hetsched.kernels.attention.task import AttentionTask
from hetsched.kernels.attention.triton_backward import dkv_kernel, dq_kernel
from hetsched.kernels.attention.triton_common import MASK_KINDS
from hetsched.kernels.attention.triton_forward import forward_kernel
from hetsched.kernels.attention.work import TileShape

IS_INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
_LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class KernelShape:
    """Tile sizes of a kernel and how its programs are compiled."""

    tile: TileShape
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """The three kernels' shapes for one head dim and element size."""

    forward: KernelShape
    dkv: KernelShape
    dq: KernelShape


def shapes_for(head_dim: int, element_bytes: int) -> Shapes:
    """Shapes that compile for sm_90 without spills, and that won on H200."""
    if element_bytes == 4:
        small = KernelShape(TileShape(64, 32), 4, 1)
        return Shapes(small, small, small)
    if head_dim > 128:
        return Shapes(
            KernelShape(TileShape(64, 64), 8, 2),
            KernelShape(TileShape(16, 64), 8, 2),
            KernelShape(TileShape(64, 32), 8, 2),
        )
    square = TileShape(64, 64)
    forward = KernelShape(square, 4, 3)
    if head_dim <= 64:
        return Shapes(forward, KernelShape(square, 4, 2), forward)
    return Shapes(forward, KernelShape(TileShape(64, 128), 8, 3), KernelShape(TileShape(128, 64), 8, 3))


def forward(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    task: AttentionTask,
    *,
    scale: float | None = None,
    carry: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`hetsched.kernels.attention.naive.forward`, but a carry is updated in place and returned.

    Args:
        q_THD, k_SKD, v_SKD: any row stride, heads and D contiguous.
        task: made for these shapes on this device.
        scale: factor of the scores, by default ``1 / sqrt(D)``.
        carry: float32 output ``[T, H, D]`` and lse ``[H, T]`` over other keys.

    Returns:
        output and lse, owned by the caller.
    """
    task.check(q_THD, k_SKD, v_SKD)
    head_dim = q_THD.shape[-1]
    shape = shapes_for(head_dim, q_THD.element_size()).forward
    table = task.table("queries", shape.tile)
    out, lse = carry if carry is not None else outputs(q_THD, table.is_complete)
    q_THD, k_SKD, v_SKD = packed_heads(q_THD), packed_heads(k_SKD), packed_heads(v_SKD)
    if table.num_items:
        _set_scratch_allocator()
        forward_kernel[(table.num_items,)](
            *(q_THD, k_SKD, v_SKD, out, lse, *task.bounds, table.tiles, table.order, q_THD.shape[0]),
            *(q_THD.stride(0), k_SKD.stride(0), v_SKD.stride(0), softmax_scale(q_THD, scale) * _LOG2E),
            CARRY=carry is not None,
            **_constants(q_THD, task, shape),
        )
    return out, lse


def delta(out_THD: Tensor, dout_THD: Tensor) -> Tensor:
    """``[H, T]`` float32: the row sums of output times its gradient."""
    num_rows, num_heads, head_dim = out_THD.shape
    result = torch.empty(num_heads, num_rows, dtype=torch.float32, device=out_THD.device)
    if num_rows:
        block = triton.next_power_of_2(head_dim)
        grid = (triton.cdiv(num_rows, 64), num_heads)
        delta_kernel[grid](
            out_THD, dout_THD.contiguous(), result, num_rows, HEADS=num_heads, D=head_dim, BLOCK_D=block, ROWS=64
        )
    return result


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients over the task's keys, given the final lse and delta; bitwise equal on every repeat.

    Args:
        dout_THD: gradient of the output.
        q_THD, k_SKD, v_SKD, task, scale: as in :func:`forward`.
        lse_HT, delta_HT: float32, over all keys of each query.
        dq_sum: float32 ``[T, H, D]`` to add dq to, in place, over the steps of a ring.
        dkv_dtype: of dk and dv, by default that of k; float32 for partial sums.

    Returns:
        dq (``dq_sum`` if given), dk and dv.
    """
    task.check(q_THD, k_SKD, v_SKD)
    statistics = padded_statistics(lse_HT, delta_HT, task, softmax_scale(q_THD, scale))
    inputs = (packed_heads(q_THD), packed_heads(k_SKD), packed_heads(v_SKD), dout_THD.contiguous(), *statistics)
    _set_scratch_allocator()
    dk, dv = _launch_dkv(inputs, task, scale, dkv_dtype or k_SKD.dtype)
    return _launch_dq(inputs, task, scale, dq_sum), dk, dv


def padded_statistics(
    lse_HT: Tensor,
    delta_HT: Tensor,
    task: AttentionTask,
    factor: float,
    *,
    staged: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``-lse / factor`` and ``-delta``, ``[H, padded rows]``, as the backward kernels read them.

    Args:
        lse_HT, delta_HT: float32, with the same strides.
        task: of the queries.
        factor: of the scores.
        staged: lse and delta ``[H, rows]`` of the task's first rows; the others are then those after them.
    """
    padded_rows = work.num_padded_rows(task.ranges)
    lse, delta = torch.empty(2, task.num_heads, padded_rows, dtype=torch.float32, device=lse_HT.device)
    first = 0 if staged is None else staged[0].shape[1]
    blocks = task.pad_blocks(first)
    for (more_lse, more_delta), some in zip((staged or (lse_HT, delta_HT), (lse_HT, delta_HT)), blocks, strict=True):
        if some.shape[0]:
            pad_statistics_kernel[(some.shape[0], task.num_heads)](
                *(more_lse, more_delta, lse, delta, some, *more_lse.stride(), padded_rows, 1.0 / factor)
            )
    return lse, delta


def _launch_dq(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    task: AttentionTask,
    scale: float | None,
    dq_sum: Tensor | None,
) -> Tensor:
    q, k, v = inputs[:3]
    shape = shapes_for(q.shape[-1], q.element_size()).dq
    table = task.table("queries", shape.tile)
    dq = dq_sum if dq_sum is not None else fresh(q, q.dtype, table.is_complete)
    if table.num_items:
        dq_kernel[(table.num_items,)](
            *(*inputs, dq, *task.bounds, table.tiles, table.order, inputs[4].shape[1]),
            *(q.stride(0), k.stride(0), v.stride(0), softmax_scale(q, scale) * _LOG2E, softmax_scale(q, scale)),
            ACCUMULATE=dq_sum is not None,
            **_constants(q, task, shape),
        )
    return dq


def _launch_dkv(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    task: AttentionTask,
    scale: float | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    q, k, v = inputs[:3]
    shape = shapes_for(q.shape[-1], q.element_size()).dkv
    table = task.table("keys", shape.tile)
    dk, dv = fresh(k, dtype, table.is_complete), fresh(v, dtype, table.is_complete)
    if table.num_items:
        dkv_kernel[(table.num_items,)](
            *(*inputs, dk, dv, task.seen_by, table.tiles, table.order, inputs[4].shape[1], k.shape[0]),
            *(q.stride(0), k.stride(0), v.stride(0), softmax_scale(q, scale) * _LOG2E, softmax_scale(q, scale)),
            **_constants(q, task, shape),
        )
    return dk, dv


def _constants(q_THD: Tensor, task: AttentionTask, shape: KernelShape) -> dict[str, int | bool]:
    """Compile-time arguments that all three kernels share, and how to compile them."""
    head_dim = q_THD.shape[-1]
    return {
        "HEADS": task.num_heads,
        "GROUP": task.num_heads // task.num_kv_heads,
        "D": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_Q": shape.tile.queries,
        "BLOCK_K": shape.tile.keys,
        "MASK": MASK_KINDS[task.ranges.kind],
        "UPCAST": IS_INTERPRETED and q_THD.element_size() == 2,
        "num_warps": shape.num_warps,
        "num_stages": shape.num_stages,
    }


def packed_heads(x_THD: Tensor) -> Tensor:
    """The tensor itself, or a copy unless heads and D are contiguous and rows 16-byte aligned, as in a fused QKV."""
    _, _, head_dim = x_THD.shape
    is_packed = x_THD.stride(2) == 1 and x_THD.stride(1) == head_dim and x_THD.stride(0) >= x_THD.shape[1] * head_dim
    is_aligned = x_THD.stride(0) * x_THD.element_size() % 16 == 0 and x_THD.data_ptr() % 16 == 0
    return x_THD if is_packed and is_aligned else x_THD.clone(memory_format=torch.contiguous_format)


def softmax_scale(q_THD: Tensor, scale: float | None) -> float:
    """The factor of the scores."""
    return scale if scale is not None else 1.0 / math.sqrt(q_THD.shape[-1])


def fresh(like: Tensor, dtype: torch.dtype, is_complete: bool) -> Tensor:
    """Contiguous memory for a result: zeros where the kernel does not write every row."""
    make = torch.empty if is_complete else torch.zeros
    return make(like.shape, dtype=dtype, device=like.device)


def outputs(q_THD: Tensor, is_complete: bool) -> tuple[Tensor, Tensor]:
    """Memory for the output and for lse, which starts at -inf."""
    lse = torch.full((q_THD.shape[1], q_THD.shape[0]), -math.inf, dtype=torch.float32, device=q_THD.device)
    return fresh(q_THD, q_THD.dtype, is_complete), lse


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, device="cuda", dtype=torch.int8)


def _set_scratch_allocator() -> None:
    """Tensor descriptors made on the device live in scratch memory; the setting is per thread, autograd's included."""
    triton.set_allocator(_scratch)
