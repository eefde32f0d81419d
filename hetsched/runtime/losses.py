"""What the last stages of a step return, added up at its end: in an action each addition would be a launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Losses:
    """The losses of one step on this rank.

    Args:
        divisor: weight of the global batch.
    """

    def __init__(self, divisor: float) -> None:
        self._divisor = divisor
        self._loss_sums: list[Tensor] = []
        self._weights: list[Tensor | float] = []
        self._gradient: Tensor | None = None

    def add(self, loss_sum: Tensor, weight: Tensor | float) -> None:
        """Of one microbatch, not divided; neither may change until the step ends."""
        self._loss_sums.append(loss_sum.detach())
        self._weights.append(weight)

    def gradient_of(self, loss_sum: Tensor) -> Tensor | None:
        """Of the divided loss of the batch with respect to that of a microbatch; None if nobody asks for one."""
        if not loss_sum.requires_grad:
            return None
        if self._gradient is None or self._gradient.dtype != loss_sum.dtype:
            self._gradient = torch.ones_like(loss_sum) / self._divisor
        return self._gradient

    def totals(self) -> tuple[Tensor, Tensor]:
        """The sums of losses and of weights; float64 scalars."""
        return _total(self._loss_sums), _total(self._weights)


def _total(values: Sequence[Tensor | float]) -> Tensor:
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = sum(value for value in values if not isinstance(value, Tensor))
    if not tensors:
        return torch.tensor(numbers, dtype=torch.float64)
    return torch.stack(tensors).double().sum() + numbers
