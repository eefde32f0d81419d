"""Data parallelism of a stage: its gradients are summed over the ranks that hold a copy of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from hetsched.parallel.copies import Copies

_ALIGNED = 64
"""Values of which a rank's part is a multiple, so that NCCL moves whole cache lines."""


def sum_gradients(parameters: Iterable[nn.Parameter], copies: Copies | None) -> None:
    """Sum ``.grad`` of every trained parameter of a stage over its copies, in float32 or wider, all together.

    A rank that did no work for a parameter takes part with zeros. Nothing is averaged: the loss is already
    divided by the weight of the global batch.

    Args:
        parameters: of the stage, the same in the same order on all ranks that hold it; those not trained are left out.
        copies: the ranks that do; None where there is only one.
    """
    gradients = [_gradient(p) for p in parameters if p.requires_grad]
    if copies is None or not gradients:
        return
    # One launch for all parameters instead of one for each: there are hundreds, and the GPU waits for the host here.
    together = _together(gradients, multiple=copies.num_ranks * _ALIGNED)
    if together.itemsize < torch.float32.itemsize:
        _sum_in_parts(together, copies)
    else:
        copies.all_reduce(together)
    sizes = [gradient.numel() for gradient in gradients]
    parts = torch.split(together[: sum(sizes)], sizes)
    torch._foreach_copy_(gradients, [part.view_as(of) for part, of in zip(parts, gradients, strict=True)])


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _together(gradients: Sequence[Tensor], *, multiple: int) -> Tensor:
    """All of them in one dtype, one after the other, and memory behind them up to a multiple of so many values."""
    num_values = sum(gradient.numel() for gradient in gradients)
    dtype = reduce(torch.promote_types, {gradient.dtype for gradient in gradients})
    together = gradients[0].new_empty(-(-num_values // multiple) * multiple, dtype=dtype)
    torch.cat([gradient.reshape(-1) for gradient in gradients], out=together[:num_values])
    return together


def _sum_in_parts(values: Tensor, copies: Copies) -> None:
    """Sum 16-bit values over copies in place, added up in float32 and rounded once.

    Each rank adds up one part and gives the others its sum. What travels has 16 bits, half of what a sum in float32
    would send.

    Args:
        values: ``[n]`` on each rank; n is a multiple of the number of ranks.
        copies: the ranks.
    """
    of_ranks = torch.empty_like(values)
    copies.all_to_all(of_ranks, values)
    sums = of_ranks.view(copies.num_ranks, -1).sum(0, dtype=torch.float32).to(values.dtype)
    copies.all_gather(values, sums)
