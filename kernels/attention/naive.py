"""Attention in plain torch: the truth for the kernels, the CPU path, and float64 where parity needs it.

Shapes: T query rows, S key rows, H query heads, K key heads (H a multiple of K), D head dim;
suffixes name the layout, e.g. ``q_THD``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hetsched.kernels.attention.ranges import KeyRanges, Span


def forward(
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    ranges: KeyRanges,
    *,
    scale: float | None = None,
    carry: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of packed documents, and its log-sum-exp.

    Args:
        q_THD, k_SKD, v_SKD: packed rows; computed in float64 if they are, otherwise in float32.
        ranges: the keys that each query sees.
        scale: factor of the scores, by default ``1 / sqrt(D)``.
        carry: output ``[T, H, D]`` and lse ``[H, T]`` over other keys, to be continued over these.

    Returns:
        output ``[T, H, D]``, of q's dtype, or of the carried output's if there is one; lse ``[H, T]``,
        natural log, float32 (float64 for float64). A row without keys gives 0 and -inf.
    """
    compute = _compute_dtype(q_THD)
    dtype = q_THD.dtype if carry is None else carry[0].dtype
    num_heads = q_THD.shape[1]
    out = torch.zeros(q_THD.shape, dtype=compute, device=q_THD.device)
    lse = torch.full((num_heads, q_THD.shape[0]), -math.inf, dtype=compute, device=q_THD.device)
    for span, p_HQS, rows_lse in _probabilities(q_THD, k_SKD, ranges, scale):
        rows = slice(span.q_start, span.q_start + span.num_queries)
        out[rows] = torch.einsum("hqs,shd->qhd", p_HQS, _keys(v_SKD, span, num_heads, compute))
        lse[:, rows] = rows_lse
    if carry is not None:
        out, lse = merge((out, lse), (carry[0].to(compute), carry[1].to(compute)))
    return out.to(dtype), lse


def backward(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_SKD: Tensor,
    v_SKD: Tensor,
    lse_HT: Tensor,
    delta_HT: Tensor,
    *,
    ranges: KeyRanges,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v over these keys, given the lse over all keys and delta.

    Because lse and delta are final, the sums over sources of what this returns are the gradients.

    Args:
        dout_THD: gradient of the output.
        q_THD, k_SKD, v_SKD, ranges, scale: as in :func:`forward`.
        lse_HT: log-sum-exp over all keys of the query, not only over these.
        delta_HT: ``sum(dout * out)`` over D.

    Returns:
        dq, dk, dv in float32 (float64 for float64).
    """
    compute, num_heads = _compute_dtype(q_THD), q_THD.shape[1]
    factor = _scale(q_THD, scale)
    dq, dk, dv = (torch.zeros(x.shape, dtype=compute, device=x.device) for x in (q_THD, k_SKD, v_SKD))
    for span in ranges.spans:
        queries = slice(span.q_start, span.q_start + span.num_queries)
        keys = slice(span.k_start, span.k_start + span.num_keys)
        s_HQS, seen_QS = _scores(q_THD, k_SKD, span, ranges, factor)
        lse = lse_HT[:, queries].to(compute)
        p_HQS = torch.where(seen_QS, torch.exp(s_HQS - lse[:, :, None]), 0.0)
        do, q = dout_THD[queries].to(compute), q_THD[queries].to(compute)
        dp_HQS = torch.einsum("qhd,shd->hqs", do, _keys(v_SKD, span, num_heads, compute))
        ds_HQS = torch.where(seen_QS, p_HQS * (dp_HQS - delta_HT[:, queries, None].to(compute)), 0.0) * factor
        dq[queries] = torch.einsum("hqs,shd->qhd", ds_HQS, _keys(k_SKD, span, num_heads, compute))
        dk[keys] = _sum_group(torch.einsum("hqs,qhd->shd", ds_HQS, q), k_SKD.shape[1])
        dv[keys] = _sum_group(torch.einsum("hqs,qhd->shd", p_HQS, do), v_SKD.shape[1])
    return dq, dk, dv


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The (output, lse) over the union of two disjoint sets of keys, from those over each."""
    (out_a, lse_a), (out_b, lse_b) = first, second
    top = torch.maximum(lse_a, lse_b)
    top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
    a, b = torch.exp(lse_a - top), torch.exp(lse_b - top)
    total = a + b
    safe = torch.where(total > 0, total, torch.ones_like(total))
    out = out_a * (a / safe).T[:, :, None] + out_b * (b / safe).T[:, :, None]
    return out, top + torch.log(total)


def delta(out_THD: Tensor, dout_THD: Tensor) -> Tensor:
    """``[H, T]``: the row sums of output times its gradient, which the backward needs."""
    compute = _compute_dtype(out_THD)
    return (out_THD.to(compute) * dout_THD.to(compute)).sum(-1).T.contiguous()


def _probabilities(
    q_THD: Tensor, k_SKD: Tensor, ranges: KeyRanges, scale: float | None
) -> Iterator[tuple[Span, Tensor, Tensor]]:
    factor = _scale(q_THD, scale)
    for span in ranges.spans:
        s_HQS, seen_QS = _scores(q_THD, k_SKD, span, ranges, factor)
        if span.num_queries == 0 or span.num_keys == 0:
            continue
        s_HQS = s_HQS.masked_fill(~seen_QS, -math.inf)
        top = s_HQS.amax(-1, keepdim=True)
        top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
        p_HQS = torch.exp(s_HQS - top)
        total = p_HQS.sum(-1, keepdim=True)
        yield span, p_HQS / torch.where(total > 0, total, torch.ones_like(total)), (top + torch.log(total))[:, :, 0]


def _scores(q_THD: Tensor, k_SKD: Tensor, span: Span, ranges: KeyRanges, factor: float) -> tuple[Tensor, Tensor]:
    rows = slice(span.q_start, span.q_start + span.num_queries)
    compute = _compute_dtype(q_THD)
    keys = _keys(k_SKD, span, q_THD.shape[1], compute)
    s_HQS = torch.einsum("qhd,shd->hqs", q_THD[rows].to(compute), keys) * factor
    key = torch.arange(span.num_keys, device=q_THD.device)[None, :]
    lo = torch.from_numpy(ranges.lo[rows]).to(q_THD.device)[:, None]
    hi = torch.from_numpy(ranges.hi[rows]).to(q_THD.device)[:, None]
    return s_HQS, (key >= lo) & (key < hi)


def _keys(x_SKD: Tensor, span: Span, num_heads: int, dtype: torch.dtype) -> Tensor:
    rows = x_SKD[span.k_start : span.k_start + span.num_keys].to(dtype)
    return rows.repeat_interleave(num_heads // x_SKD.shape[1], dim=1)


def _sum_group(x_SHD: Tensor, num_kv_heads: int) -> Tensor:
    num_rows, num_heads, head_dim = x_SHD.shape
    return x_SHD.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim).sum(2)


def _scale(q_THD: Tensor, scale: float | None) -> float:
    return scale if scale is not None else 1.0 / math.sqrt(q_THD.shape[-1])


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
