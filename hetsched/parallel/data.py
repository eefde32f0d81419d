"""Data parallelism of a stage: its gradients are summed over the ranks that hold a copy of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    """Sum ``.grad`` of every trained parameter of a stage over ``group``, in float32 or wider, as one message.

    A rank that did no work for a parameter takes part with zeros. Nothing is averaged: the loss is already
    divided by the weight of the global batch.

    Args:
        parameters: of the stage, the same in the same order on all ranks of the group; those not trained are left out.
        group: the ranks that hold a copy; None where there is only one.
    """
    gradients = [_gradient(p) for p in parameters if p.requires_grad]
    if group is None or not gradients:
        return
    # One launch for all parameters instead of one for each: there are hundreds, and the GPU waits for the host here.
    together = torch.cat([gradient.reshape(-1) for gradient in gradients])
    wide = together.to(torch.promote_types(together.dtype, torch.float32))
    dist.all_reduce(wide, group=group)
    parts = torch.split(wide.to(together.dtype), [gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(of) for part, of in zip(parts, gradients, strict=True)])


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
