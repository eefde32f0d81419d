"""What the ranks of the NCCL tests do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from hetsched.batch import Batch
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.train.trainer import Trainer
from tests.dist.work import batches, source_of, train_on_ranks

NUM_STEPS = 3


def train_all(jobs: Mapping[str, tuple[Plan, str | None]], curves: Plan, folder: Path) -> None:
    """Train each plan with its mutant, and the digits of ``curves``; leaves ``<name>-<rank>.pt`` of each."""
    for name, (plan, mutant) in jobs.items():
        torch.save(train_on_ranks(plan, "many", mutant), folder / f"{name}-{dist.get_rank()}.pt")
    torch.save(train_digits(curves), folder / f"digits-{dist.get_rank()}.pt")


def train_digits(plan: Plan) -> list[float]:
    """Losses, norms of gradients before clipping, and the held-out loss at the end."""
    trainer, seen = Trainer(plan), []
    trainer.train(NUM_STEPS, after_step=lambda _, report, norm: seen.extend((report.loss, norm)))
    return [*seen, trainer.evaluate().loss]


def die_in_a_step(plan: Plan, timeout_s: float) -> None:
    """A good step, which loads every kernel; in the same step again rank 1 ends as its stage of the LLM begins."""
    engine = Engine(plan, builders(plan), timeout_s=timeout_s)
    source = source_of(plan, "many")
    batch = Batch.of(source, batches("many")[0])
    engine.step(batch)
    if dist.get_rank() == 1:
        engine.stages["llm", 1].register_forward_pre_hook(lambda *_: os._exit(9))
    engine.step(batch)
