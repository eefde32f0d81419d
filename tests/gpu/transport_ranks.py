"""What the ranks of the tests of transports do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from hetsched.batch import Batch
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.runtime.shapes import SeenShapes
from hetsched.train.trainer import Trainer
from tests.dist.work import batches, source_of, train_on_ranks

NUM_STEPS = 3
HELD_FROM = 2
"""Forwards after which a rank that is to be held waits for its whole device: by then a gradient is on its way to it."""


@contextmanager
def kernels_loaded() -> Iterator[None]:
    """No step's messages go through the hosts, as if no kernel was left to load; only after a run that loaded them."""
    with mock.patch.object(SeenShapes, "add", return_value=False):
        yield


def train_all(jobs: Mapping[str, tuple[Plan, str | None]], curves: Plan, folder: Path) -> None:
    """Train each plan with its mutant, and the digits of ``curves``; leaves ``<name>-<rank>.pt`` of each."""
    for name, (plan, mutant) in jobs.items():
        train_on_ranks(plan, "many", mutant)
        # Giving up an engine's symmetric memory waits for the device, so not in the middle of a step.
        gc.collect()
        with kernels_loaded():
            torch.save(train_on_ranks(plan, "many", mutant), folder / f"{name}-{dist.get_rank()}.pt")
    torch.save(train_digits(curves), folder / f"digits-{dist.get_rank()}.pt")


def train_digits(plan: Plan) -> list[float]:
    """Losses, norms of gradients before clipping, and the held-out loss at the end."""
    trainer, seen = Trainer(plan), []
    trainer.train(NUM_STEPS, after_step=lambda _, report, norm: seen.extend((report.loss, norm)))
    return [*seen, trainer.evaluate().loss]


def die_in_a_step(plan: Plan, timeout_s: float, num_before: int, is_held: bool) -> None:
    """After ``num_before`` good steps rank 1 ends as its stage of the LLM begins.

    Args:
        plan: two stages of the LLM on two ranks.
        timeout_s: of the engine.
        num_before: 0 for a first step, which loads kernels.
        is_held: whether rank 0's thread waits for its whole device, as it would in the load of a kernel.
    """
    engine = Engine(plan, builders(plan), timeout_s=timeout_s)
    batch = Batch.of(source_of(plan, "many"), batches("many")[0])
    for _ in range(num_before):
        engine.step(batch)
    if dist.get_rank() == 1:
        engine.stages["llm", 1].register_forward_pre_hook(lambda *_: os._exit(9))
    elif is_held:
        calls = count()
        engine.stages["llm", 0].register_forward_pre_hook(
            lambda *_: torch.cuda.synchronize() if next(calls) >= HELD_FROM else None
        )
    engine.step(batch)


def die_in_a_sum(plan: Plan, timeout_s: float) -> None:
    """After two good steps rank 1 ends where the gradients of the encoder's replicas are summed."""
    engine = Engine(plan, builders(plan), timeout_s=timeout_s)
    batch = Batch.of(source_of(plan, "many"), batches("many")[0])
    for _ in range(2):
        engine.step(batch)
    if dist.get_rank() == 1:
        engine._executor._reduce = lambda *_: os._exit(9)
    engine.step(batch)


def train_both_ways(plan: Plan, folder: Path) -> None:
    """One step three times; leaves for each whether the hosts carried its messages, its loss and gradients."""
    engine = Engine(plan, builders(plan), timeout_s=60.0)
    batch = Batch.of(source_of(plan, "many"), batches("many")[0])
    found = []
    for _ in range(3):
        report = engine.step(batch)
        gradients = {name: p.grad.clone() for name, p in engine.named_parameters() if p.grad is not None}
        found.append((engine._transport._transport.is_staged, report.loss, gradients))
    torch.save(found, folder / f"ways-{dist.get_rank()}.pt")
