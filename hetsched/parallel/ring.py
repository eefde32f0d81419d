"""Attention over keys that other ranks hold, step by step: in step s from the rank s before this one.

The message of the next step is on its way while a step is computed. A step continues the output and lse of the steps
before it, in float32 (float64 for float64), so nothing is merged afterwards and nothing is rounded in between.

Source: Liu et al., Ring Attention with Blockwise Transformers, arXiv 2310.01889; here ranks exchange directly, so
that only rows which are needed travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.attention.attend import backward_step, forward_step, row_delta
from hetsched.parallel.context_task import ContextTask, Step
from hetsched.parallel.meter import Meter, Passage


@dataclass(frozen=True, slots=True)
class Message:
    """What a rank sends and receives in one step, on its way; it keeps the memory of both."""

    sent: Tensor
    received: Tensor
    works: list[dist.Work]
    passage: Passage | None

    def wait(self) -> Tensor:
        """What was received; on a GPU it is the stream that waits, not the host."""
        if self.passage is not None:
            with self.passage.waiting():
                for work in self.works:
                    work.wait()
        return self.received


def forward(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    task: ContextTask,
    *,
    group: dist.ProcessGroup,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and lse of this rank's queries over the keys of all ranks.

    Args:
        q_THD, k_TKD, v_TKD: this rank's rows.
        task: of the microbatch.
        group: its ranks.
        scale: factor of the scores, by default ``1 / sqrt(D)``.

    Returns:
        output ``[T, H, D]`` of q's dtype; lse ``[H, T]``, natural log, float32 (float64 for float64).
    """
    carry = nothing_seen(q_THD) if task.receives else None
    for step, k, v in _arriving(task, k_TKD, v_TKD, group):
        if step.num_rows or carry is None:
            carry = forward_step(q_THD, k, v, step.attention, carry=carry, scale=scale)
    assert carry is not None, "own keys are a step of their own"
    return carry[0].to(q_THD.dtype), carry[1]


def backward(
    dout_THD: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    task: ContextTask,
    *,
    group: dist.ProcessGroup,
    scale: float | None = None,
    is_deterministic: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this rank's q, k and v.

    Keys and values are exchanged once more rather than kept: kept, they would be most of the sequence's on every
    rank, for every layer and microbatch in flight, which context parallelism is there to avoid. Partial gradients of
    keys and values go to the rank that owns the rows in float32 (float64 for float64) and are added there in the
    order of ranks, so that repeats are bitwise equal.

    Args:
        dout_THD: gradient of the output.
        saved: q, k, v, output and lse of the forward.
        task, group, scale: as in :func:`forward`.
        is_deterministic: as in :func:`hetsched.kernels.attention.attend.attend`.

    Returns:
        dq, dk and dv, of the dtypes of q, k and v.
    """
    q, k, v, out, lse = saved
    statistics = (lse, row_delta(out, dout_THD))
    dq = torch.zeros(q.shape, dtype=_wide(q), device=q.device)
    returned: dict[int, tuple[Tensor, Message]] = {}
    for step, k_step, v_step in _arriving(task, k, v, group):
        dkv = dq.new_empty(2, *k_step.shape)
        if step.num_rows:
            _, *parts = backward_step(
                *(dout_THD, q, k_step, v_step, statistics, step.attention),
                scale=scale,
                dq_sum=dq,
                dkv_dtype=dq.dtype,
                is_deterministic=is_deterministic,
            )
            torch.stack(parts, out=dkv)
        arriving = dkv if step.source == task.rank else dq.new_empty(2, len(step.sent), *k.shape[1:])
        returned[step.target] = (step.sent, _post(dkv, step.source, arriving, step.target, group, task.meter))
    dkv = torch.zeros(2, *k.shape, dtype=dq.dtype, device=dq.device)
    for _, (rows, message) in sorted(returned.items()):
        dkv.index_add_(1, rows, message.wait())
    return dq.to(q.dtype), dkv[0].to(k.dtype), dkv[1].to(v.dtype)


def _arriving(
    task: ContextTask, k_TKD: Tensor, v_TKD: Tensor, group: dist.ProcessGroup
) -> Iterator[tuple[Step, Tensor, Tensor]]:
    """Each step's keys and values; before they are handed out, the message of the next step is posted."""
    messages = []
    for step, following in zip(task.steps, (*task.steps[1:], None), strict=True):
        if following is not None:
            messages.append(_post_keys(following, k_TKD, v_TKD, group, task.meter))
        k, v = (k_TKD, v_TKD) if step.source == task.rank else messages.pop(0).wait()
        yield step, k, v


def _post_keys(step: Step, k_TKD: Tensor, v_TKD: Tensor, group: dist.ProcessGroup, meter: Meter) -> Message:
    """The rows that the target needs, keys and values in one message."""
    sent = k_TKD.new_empty(2, len(step.sent), *k_TKD.shape[1:])
    for rows, part in zip((k_TKD, v_TKD), sent, strict=True):
        torch.index_select(rows, 0, step.sent, out=part)
    received = k_TKD.new_empty(2, step.num_rows, *k_TKD.shape[1:])
    return _post(sent, step.target, received, step.source, group, meter)


def _post(sent: Tensor, target: int, received: Tensor, source: int, group: dist.ProcessGroup, meter: Meter) -> Message:
    """Start sending and receiving; a tensor without rows is no message, and neither is one that stays here."""
    operations = []
    if sent is not received:
        if sent.numel():
            operations.append(dist.P2POp(dist.isend, sent, group=group, group_peer=target))
        if received.numel():
            operations.append(dist.P2POp(dist.irecv, received, group=group, group_peer=source))
    if not operations:
        return Message(sent, received, [], None)
    passage, works = meter.passage(sent.nbytes), dist.batch_isend_irecv(operations)
    passage.arrives_with(works)
    return Message(sent, received, works, passage)


def nothing_seen(q_THD: Tensor) -> tuple[Tensor, Tensor]:
    """Output and lse before the first step."""
    wide = _wide(q_THD)
    out = torch.zeros(q_THD.shape, dtype=wide, device=q_THD.device)
    return out, torch.full((q_THD.shape[1], q_THD.shape[0]), -math.inf, dtype=wide, device=q_THD.device)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
