"""Data parallelism of a stage: its gradients are summed over the ranks that hold a copy of it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


def sum_gradients(stage: nn.Module, group: dist.ProcessGroup | None) -> None:
    """Sum ``.grad`` of every trained parameter over ``group``, in float32 or wider, as one message.

    A rank that did no work for a parameter takes part with zeros. Nothing is averaged: the loss is already
    divided by the weight of the global batch.

    Args:
        stage: its parameters are the same, in the same order, on all ranks of the group.
        group: the ranks that hold a copy; None where there is only one.
    """
    parameters = [p for p in stage.parameters() if p.requires_grad]
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if group is None or not parameters:
        return
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    flat = torch.cat([p.grad.reshape(-1).to(wide) for p in parameters if p.grad is not None])
    dist.all_reduce(flat, group=group)
    parts = torch.split(flat, [p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        assert p.grad is not None
        p.grad.copy_(part.view_as(p))
