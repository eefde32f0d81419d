"""Weight gradients put off: the part of a backward that a schedule calls W.

A linear layer is the only place where computing the weight's gradient can wait at no cost: it needs the layer's
input and its output's gradient, both of which exist after I. All else (biases, norms, embeddings, parameters of a
stage's own autograd Functions, what a weight is itself computed from) is computed in I, where it costs little or cannot
be taken apart, so that I and W together give exactly what B gives.

Source: Qi et al. 2023 (arXiv 2401.10241), section 2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Put = tuple[nn.Parameter, Tensor, Tensor]
"""(weight ``[out, in]``, input ``[n, in]``, gradient of the output ``[n, out]``)."""


class WeightGradients:
    """The linear layers of one stage, and what they have put off.

    Args:
        stage: its plain ``nn.Linear`` layers defer from now on, whenever ``is_deferring`` is set.
    """

    def __init__(self, stage: nn.Module) -> None:
        self.is_deferring = False
        self._current: list[Put] = []
        self._put: dict[int, list[Put]] = {}
        for layer in stage.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_forward, layer, self)  # type: ignore[method-assign]

    def begin(self) -> None:
        """From here on backwards compute no weight gradient of a linear layer."""
        self.is_deferring, self._current = True, []

    def end(self, microbatch: int) -> None:
        """Keep what was put off since ``begin`` for the W of a microbatch."""
        self.is_deferring = False
        self._put[microbatch] = self._current

    def put(self, weight: nn.Parameter, rows: Tensor, gradient: Tensor) -> None:
        """Called by a layer's backward."""
        self._current.append((weight, rows, gradient))

    @torch.no_grad()
    def multiply(self, microbatch: int) -> None:
        """Compute what the I of a microbatch has put off, and add it to the weights' ``.grad``."""
        for weight, rows, gradient in self._put.pop(microbatch):
            product = (gradient.T @ rows).to(weight.dtype)
            if weight.grad is None:
                weight.grad = product
            else:
                weight.grad += product


def _forward(layer: nn.Linear, owner: WeightGradients, rows: Tensor) -> Tensor:
    if not _can_wait(layer.weight):
        return F.linear(rows, layer.weight, layer.bias)
    out: Tensor = _DeferrableLinear.apply(rows, layer.weight, layer.bias, owner)  # type: ignore[no-untyped-call]
    return out


def _can_wait(weight: Tensor) -> bool:
    """Whether nothing follows from a weight's gradient; asked in each forward, as hooks may set the weight before."""
    # A weight's hooks are called in I, which would have nothing for them.
    has_hooks = bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)
    return weight.requires_grad and weight.is_leaf and not has_hooks


class _DeferrableLinear(torch.autograd.Function):
    """``F.linear`` whose backward asks its owner whether the weight's gradient can wait."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: nn.Parameter, bias: Tensor | None, owner: WeightGradients) -> Tensor:
        out = F.linear(rows, weight, bias)
        # Autocast multiplies in a dtype of its own, in which the backward goes on; the gradients are cast back.
        ctx.save_for_backward(rows.to(out.dtype), weight)
        ctx.owner, ctx.weight = owner, weight
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_rows = gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        flat_rows = rows.reshape(-1, rows.shape[-1])
        if ctx.owner.is_deferring:
            ctx.owner.put(ctx.weight, flat_rows, flat)
            return of_rows, None, of_bias, None
        return of_rows, flat.T @ flat_rows, of_bias, None
