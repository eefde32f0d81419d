"""I and W together give the gradients that B gives, whatever a stage makes of its linear layers."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hetsched.runtime.weight_gradient import WeightGradients


def normed_by_a_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(3, 5))


def frozen() -> nn.Module:
    layer = nn.Linear(3, 5)
    layer.weight.requires_grad_(False)
    return layer


def hooked() -> nn.Module:
    layer = nn.Linear(3, 5)
    layer.weight.register_hook(lambda gradient: 2 * gradient)
    return layer


def hooked_after_its_gradient() -> nn.Module:
    layer = nn.Linear(3, 5)

    def double(weight: Tensor) -> None:
        assert weight.grad is not None
        weight.grad *= 2

    layer.weight.register_post_accumulate_grad_hook(double)
    return layer


LAYERS = {
    "plain": lambda: nn.Linear(3, 5),
    "without a bias": lambda: nn.Linear(3, 5, bias=False),
    "with a frozen weight": frozen,
    "with a weight that a hook computes": normed_by_a_hook,
    "with a hook": hooked,
    "with a hook after its gradient": hooked_after_its_gradient,
    "parametrized": lambda: parametrizations.weight_norm(nn.Linear(3, 5)),
}
WAITING = {"plain", "without a bias"}


def gradients(stage: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), LAYERS[kind]())


@pytest.mark.parametrize("is_autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("kind", LAYERS)
def test_two_parts_of_a_backward_give_what_a_whole_one_gives(kind: str, is_autocast: bool) -> None:
    whole, parted = make(kind), make(kind)
    rows, same_rows = (torch.linspace(-1, 1, 56).view(4, 7, 2).requires_grad_() for _ in range(2))
    autocast = partial(torch.autocast, "cpu", enabled=is_autocast)
    with autocast():
        loss = whole(rows).square().sum()
    loss.backward()
    deferred = WeightGradients(parted)
    with autocast():
        loss = parted(same_rows).square().sum()
    deferred.begin()
    loss.backward()
    deferred.end(0)
    torch.testing.assert_close(same_rows.grad, rows.grad)
    in_i = gradients(parted).keys()
    deferred.multiply(0)
    torch.testing.assert_close(gradients(parted), gradients(whole))
    waited = gradients(parted).keys() - in_i
    assert waited == {"0.weight"} | ({"2.weight"} if kind in WAITING else set())
    assert all(bool(gradient.any()) for gradient in gradients(parted).values())
