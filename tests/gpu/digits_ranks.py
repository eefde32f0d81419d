"""What the ranks of the digits' tests on GPUs do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
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


def save_gradients(plans: Sequence[Plan], folder: Path) -> None:
    """Gradients before clipping of a few steps, on this rank; leaves ``<name>-<transport>-<rank>.pt`` of each plan."""
    for plan in plans:
        torch.save(gradients_of(plan), folder / f"{plan.name}-{plan.transport}-{dist.get_rank()}.pt")
        # Giving up an engine's symmetric memory waits for the device, so not in the middle of a step.
        gc.collect()


def gradients_of(plan: Plan) -> list[dict[str, torch.Tensor]]:
    """By step, and by the parameter's name."""
    assert plan.training is not None
    trainer = Trainer(replace(plan, training=replace(plan.training, clip_grad_norm=None)))
    steps = []

    def keep(*_: object) -> None:
        named = trainer.engine.named_parameters()
        steps.append({name: p.grad.cpu().clone() for name, p in named if p.grad is not None})

    trainer.train(NUM_STEPS, after_step=keep)
    return steps


def sharing(save: Callable[..., None], *args: object) -> None:
    """One of the above, where ranks share GPUs."""
    with shared_gpus():
        save(*args)
