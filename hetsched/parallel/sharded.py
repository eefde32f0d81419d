"""Attention for a stage of a context-parallel module: from what it is told of its shard to a function of q, k and v."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.distributed as dist
from torch import Tensor

from hetsched.parallel.context import context_attention
from hetsched.parallel.context_task import shared_task
from hetsched.parallel.meter import UNMEASURED, Meter
from hetsched.parallel.pull import where_possible
from hetsched.runtime.stage import ContextShard

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sharded_attention(  # noqa: PLR0913  # what a builder was given, and what attention needs to know of heads
    shard: ContextShard | None,
    *,
    group: dist.ProcessGroup | None,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    like: Tensor,
    meter: Meter = UNMEASURED,
) -> Attend:
    """Causal attention of the rows that are here over all rows of their samples; made once for all layers.

    All stages of a module's context-parallel ranks call it for the same microbatches, and call what it returns, and its
    backward, in the same order.

    Args:
        shard: ``meta.shard`` of the microbatch.
        group: ``mesh.context_group``, of the mesh that the stage's builder was given.
        num_heads, num_kv_heads: of queries, and of keys and values.
        head_dim: channels of a head.
        like: any tensor of the dtype and on the device of queries, such as the stage's rows.
        meter: ``mesh.meter``, so that reports count the messages.

    Returns:
        A function of queries ``[T, num_heads, head_dim]``, keys and values ``[T, num_kv_heads, head_dim]`` of this
        rank's T rows, to outputs like the queries.

    Raises:
        ValueError: nothing is sharded, or the group is missing.
    """
    if shard is None or group is None:
        what = "meta.shard is None: the module's layout has no cp" if shard is None else "pass mesh.context_group"
        raise ValueError(f"sharded_attention is for rows that lie on several ranks; {what}")
    task = shared_task(
        shard.cu_seqlens,
        shard.token_map,
        rank=shard.rank,
        cp=group.size(),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        device=like.device,
        meter=meter,
    )
    task = where_possible(task, group=group, like=like, head_dim=head_dim)
    return partial(context_attention, task=task, group=group)
