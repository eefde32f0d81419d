"""Attention of all rows over some of the heads: rows and heads change places before it, and change back after.

Every rank has the whole sequence for its heads, so that no step waits for another; all rows of q, k, v and the output
travel, needed or not.

Source: Jacobs et al., DeepSpeed Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hetsched.kernels.attention.attend import attend
from hetsched.parallel.context_task import ContextTask
from hetsched.parallel.meter import Meter

_Call = tuple[dist.ProcessGroup, Meter]
"""Who exchanges, and who is told."""


def attend_by_heads(
    qkv: tuple[Tensor, Tensor, Tensor],
    task: ContextTask,
    *,
    group: dist.ProcessGroup,
    scale: float | None = None,
    is_deterministic: bool = True,
) -> Tensor:
    """Output of this rank's rows, differentiable in q, k and v.

    Args:
        qkv: queries ``[T, H, D]``, keys and values ``[T, K, D]`` of this rank's rows; the group's size divides H and K.
        task: of the microbatch.
        group: its ranks; all take part, also those without rows.
        scale, is_deterministic: as in :func:`hetsched.kernels.attention.attend.attend`.

    Returns:
        ``[T, H, D]``.
    """
    whole, rows, cp, call = task.whole, task.rows_of_rank, task.cp, (group, task.meter)
    num_own, num_heads, head_dim = qkv[0].shape
    heads = [x.shape[1] // cp for x in qkv]
    # shapes: T own rows, C ranks, S rows of all ranks, G heads of q, k and v together that one rank has
    mixed_TCGD = torch.cat([x.reshape(num_own, cp, n, head_dim) for x, n in zip(qkv, heads, strict=True)], dim=2)
    by_rank_SGD = _exchange(mixed_TCGD.transpose(0, 1).flatten(0, 1), [num_own] * cp, rows, call)
    q, k, v = torch.split(by_rank_SGD.index_select(0, whole.place_of_token), heads, dim=1)
    out_SGD, _ = attend(q, k, v, whole.attention, scale=scale, is_deterministic=is_deterministic)
    by_head = _exchange(out_SGD.index_select(0, whole.token_in_place), rows, [num_own] * cp, call)
    own_CTGD = by_head.view(cp, num_own, heads[0], head_dim)
    return own_CTGD.transpose(0, 1).reshape(num_own, num_heads, head_dim)


def _exchange(x: Tensor, sent: list[int], received: list[int], call: _Call) -> Tensor:
    """``sent[r]`` rows of x, in turn, go to rank r, from which ``received[r]`` come."""
    result: Tensor = _Exchange.apply(x, sent, received, call)  # type: ignore[no-untyped-call]
    return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], call: _Call) -> Tensor:
        ctx.call = (sent, received, call)
        result, (group, meter) = x.new_empty(sum(received), *x.shape[1:]), call
        staying = sent[dist.get_rank(group)] * x[:1].nbytes
        with meter.passage(x.nbytes - staying).waiting():
            dist.all_to_all_single(result, x.contiguous(), received, sent, group=group)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, call = ctx.call
        return _Exchange.apply(gradient, received, sent, call), None, None, None  # type: ignore[no-untyped-call]
