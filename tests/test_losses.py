"""What losses add up to, and the gradient that each microbatch's gets."""

from __future__ import annotations

import pytest
import torch

from hetsched.runtime.losses import Losses


def test_sums_are_wide_and_of_all_microbatches() -> None:
    losses = Losses(4.0)
    for value, weight in ((2.0**24, torch.tensor(3)), (1.0, torch.tensor(5)), (1.0, 7)):
        losses.add(torch.tensor(value), weight)
    loss_sum, weight_sum = losses.totals()
    assert loss_sum.dtype == torch.float64 and float(loss_sum) == 2.0**24 + 2
    assert float(weight_sum) == 15


def test_a_rank_without_losses_adds_nothing() -> None:
    assert [float(total) for total in Losses(1.0).totals()] == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_that_of_the_divided_loss(dtype: torch.dtype) -> None:
    divisor, losses = 49.0, Losses(49.0)
    rows = torch.randn(5, dtype=dtype, requires_grad=True)
    (wanted,) = torch.autograd.grad((rows**2).sum() / divisor, rows)
    loss_sum = (rows**2).sum()
    losses.add(loss_sum, 1)
    gradient = losses.gradient_of(loss_sum)
    assert gradient is not None and losses.gradient_of(loss_sum) is gradient
    (found,) = torch.autograd.grad(loss_sum, rows, gradient)
    assert torch.equal(found, wanted)


def test_a_gradient_has_the_dtype_of_its_loss() -> None:
    losses = Losses(3.0)
    for dtype in (torch.bfloat16, torch.float64, torch.float64, torch.bfloat16):
        gradient = losses.gradient_of(torch.ones((), dtype=dtype, requires_grad=True))
        assert gradient is not None and torch.equal(gradient, torch.ones((), dtype=dtype) / 3.0)


def test_a_loss_that_nobody_trains_has_no_gradient() -> None:
    assert Losses(2.0).gradient_of(torch.tensor(1.0)) is None
