"""AdamW with linear warmup and a cosine to a tenth of the peak."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from hetsched.plan import TrainingPlan


def make_optimizer(parameters: Iterable[nn.Parameter], training: TrainingPlan) -> torch.optim.Optimizer | None:
    """AdamW over this rank's trained parameters; None on a rank that has none. Norms and biases do not decay."""
    every = list(parameters)
    if not every:
        return None
    groups = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, training.beta2), foreach=True)


def learning_rate(step: int, training: TrainingPlan) -> float:
    """The rate of step ``step`` (from 0)."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    progress = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))
