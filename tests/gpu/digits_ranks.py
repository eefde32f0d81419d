"""What the ranks of the digits' tests on GPUs do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from hetsched.plan import Plan
from hetsched.train.trainer import Trainer
from tests.gpu.shared_gpus import shared_gpus

NUM_STEPS = 2


def save_losses(plans: Sequence[Plan], folder: Path) -> None:
    """The loss of every step of each plan; rank 0 leaves ``<name>.pt`` of each."""
    for plan in plans:
        assert plan.training is not None
        losses: list[float] = []
        Trainer(plan).train(plan.training.steps, after_step=lambda _, report, norm, to=losses: to.append(report.loss))
        if dist.get_rank() == 0:
            torch.save(losses, folder / f"{plan.name}.pt")


def save_gradients(plan: Plan, folder: Path) -> None:
    """Gradients before clipping of a few steps, on this rank; leaves ``<name>-<transport>-<rank>.pt``."""
    assert plan.training is not None
    unclipped = replace(plan, training=replace(plan.training, clip_grad_norm=None))
    trainer = Trainer(unclipped)
    steps: list[dict[str, torch.Tensor]] = []

    def keep(*_: object) -> None:
        named = trainer.engine.named_parameters()
        steps.append({name: p.grad.cpu().clone() for name, p in named if p.grad is not None})

    trainer.train(NUM_STEPS, after_step=keep)
    torch.save(steps, folder / f"{plan.name}-{plan.transport}-{dist.get_rank()}.pt")


def save_gradients_sharing(plan: Plan, folder: Path) -> None:
    """As ``save_gradients``, where ranks share GPUs."""
    with shared_gpus():
        save_gradients(plan, folder)
