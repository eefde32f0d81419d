"""Context-parallel attention: what an attention module calls where the rows of a sequence lie on several ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from hetsched.kernels.attention.attend import attend
from hetsched.parallel import pull, ring
from hetsched.parallel.context_task import ContextTask
from hetsched.parallel.ulysses import attend_by_heads

__all__ = ["ContextTask", "context_attention"]


def context_attention(  # noqa: PLR0913  # as attend, and the group
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    task: ContextTask,
    *,
    group: dist.ProcessGroup | None,
    scale: float | None = None,
    is_deterministic: bool = True,
) -> Tensor:
    """Causal attention of this rank's rows over all rows of their documents, wherever those lie.

    All ranks of the group call it, and its backward, in the same order; one whose documents are all its own
    communicates nothing, unless keys are pulled. On NCCL the group has communicated before, because not all ranks need
    take part in the first messages.

    Args:
        q_THD: queries ``[T, H, D]`` of this rank's T rows, in the order of its token map.
        k_TKD, v_TKD: keys and values ``[T, K, D]`` of the same rows and dtype; gradients flow to all three.
        task: of the microbatch, made for this rank.
        group: ranks 0 to ``task.cp - 1`` of the task; None where there is one only.
        scale: factor of the scores, by default ``1 / sqrt(D)``.
        is_deterministic: False lets the backward add dq in any order where that is faster.

    Returns:
        ``[T, H, D]`` of q's dtype.

    Raises:
        ValueError: the group is not that of the task, or tensors do not fit it.
    """
    if group is None and task.cp > 1:
        raise ValueError(f"the task is spread over {task.cp} ranks: context_attention needs their group")
    if group is not None and (dist.get_world_size(group), dist.get_rank(group)) != (task.cp, task.rank):
        place = f"rank {dist.get_rank(group)} of {dist.get_world_size(group)}"
        raise ValueError(f"the task was made for rank {task.rank} of {task.cp}, but the group says {place}")
    if group is not None and task.way == "ulysses":
        qkv = (q_THD, k_TKD, v_TKD)
        return attend_by_heads(qkv, task, group=group, scale=scale, is_deterministic=is_deterministic)
    if group is None or (task.way == "ring" and not task.has_messages):
        return attend(q_THD, k_TKD, v_TKD, task.steps[0].attention, scale=scale, is_deterministic=is_deterministic)[0]
    call = _Call(task, group, scale, is_deterministic)
    out: Tensor = _KeysToQueries.apply(q_THD, k_TKD, v_TKD, call)  # type: ignore[no-untyped-call]
    return out


class _Call(NamedTuple):
    """What forward and backward have in common."""

    task: ContextTask
    group: dist.ProcessGroup
    scale: float | None
    is_deterministic: bool


class _KeysToQueries(torch.autograd.Function):
    """Pulled or in a ring, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, call: _Call) -> Tensor:
        way = pull if call.task.way == "pull" else ring
        out, lse = way.forward(q_THD, k_TKD, v_TKD, call.task, group=call.group, scale=call.scale)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out, lse)
        ctx.call = call
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_THD: Tensor) -> tuple[Tensor | None, ...]:
        task, group, scale, is_deterministic = ctx.call
        if task.way_back == "pull":
            return *pull.backward(dout_THD, ctx.saved_tensors, task, group=group, scale=scale), None
        options = {"group": group, "scale": scale, "is_deterministic": is_deterministic}
        return *ring.backward(dout_THD, ctx.saved_tensors, task, **options), None
