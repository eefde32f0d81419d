"""AdamW on this rank's parameters, and a learning rate that rises and falls as the plan says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hetsched.plan import TrainingPlan
from hetsched.train.optimizer import learning_rate, make_optimizer

TRAINING = TrainingPlan(steps=100, learning_rate=2e-3, warmup_steps=10, weight_decay=0.1, beta2=0.95)


def test_the_rate_rises_to_its_peak_and_falls_along_a_cosine_to_a_tenth() -> None:
    rates = [learning_rate(step, TRAINING) for step in range(101)]
    assert rates[:10] == pytest.approx([2e-4 * (step + 1) for step in range(10)])
    assert rates[9] == max(rates) == pytest.approx(2e-3)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(2e-4)
    assert rates[55] == pytest.approx((2e-3 + 2e-4) / 2)
    quarter = 2e-4 + 1.8e-3 * (1 + math.cos(math.pi / 4)) / 2
    assert learning_rate(30, TrainingPlan(steps=90, learning_rate=2e-3, warmup_steps=10)) == pytest.approx(quarter)


@pytest.mark.parametrize("warmup", [0, 1, 5, 9])
def test_a_plan_of_any_length_has_a_rate_for_every_step(warmup: int) -> None:
    training = TrainingPlan(steps=5, learning_rate=1e-3, warmup_steps=warmup)
    assert all(0 < learning_rate(step, training) <= 1e-3 for step in range(5))


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    stage = nn.Sequential(nn.Linear(3, 2), nn.RMSNorm(2), nn.Embedding(4, 2))
    optimizer = make_optimizer(stage.parameters(), TRAINING)
    assert isinstance(optimizer, torch.optim.AdamW)
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    wanted = {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "2.weight": 0.1}
    assert {name: decay[p] for name, p in stage.named_parameters()} == wanted
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


def test_a_rank_without_parameters_has_no_optimizer() -> None:
    assert make_optimizer([], TRAINING) is None


def test_a_step_is_that_of_adamw_written_out() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    optimizer = make_optimizer([weight], TRAINING)
    assert optimizer is not None
    expected, mean, square = weight.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step in range(1, 4):
        gradient = torch.tensor([[0.5, -step]], dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
        expected = expected * (1 - 2e-3 * 0.1)
        expected -= 2e-3 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)
