"""What the ranks of a test do; in a module of its own so that worker processes can import it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hetsched.batch import Batch, DataSource
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.train.digits import DigitsSource
from tests.dist.mutants import apply_mutant
from tests.dist.ragged import RaggedSource

LEARNING_RATE = 0.05
NUM_STEPS = 5
BATCH_SIZE = 17


@dataclass
class RankTrained:
    """What one rank saw: per step the loss, this rank's gradients by name; its weights at the end; bytes it sent."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]
    sent_bytes: list[int]


def batches(items: str) -> list[list[int]]:
    """Batches of 17 samples, which nothing divides evenly; 16 where all are to be equal, fewer of the larger digits."""
    size, num_steps = {"equal": (16, NUM_STEPS), "digits": (9, 3)}.get(items, (BATCH_SIZE, NUM_STEPS))
    return [list(range(size * step, size * (step + 1))) for step in range(num_steps)]


def source_of(plan: Plan, items: str) -> DataSource:
    """Scanned digits, or ragged random items; see RaggedSource."""
    if items == "digits":
        return DigitsSource("train", seed=plan.seed, patch=4, merge=2)
    encoders = tuple(name for name in plan.modules if name != plan.sink)
    return RaggedSource(plan.seed, items=items, modules=encoders)


def train_on_ranks(
    plan: Plan, items: str, mutant: str | None = None, is_debug: bool = False, timeout_s: float = 30.0
) -> RankTrained:
    """Plain SGD with the engine."""
    undo = apply_mutant(mutant)
    try:
        engine = Engine(plan, builders(plan), timeout_s=timeout_s, is_debug=is_debug)
        source = source_of(plan, items)
        result = RankTrained([], [], {}, [])
        for batch in batches(items):
            report = engine.step(Batch.of(source, batch))
            result.losses.append(report.loss)
            result.sent_bytes.append(report.sent_bytes)
            named = {n: p for n, p in engine.named_parameters() if p.requires_grad}
            result.gradients.append({n: p.grad.clone() for n, p in named.items() if p.grad is not None})
            with torch.no_grad():
                for p in named.values():
                    assert p.grad is not None
                    p -= LEARNING_RATE * p.grad
        result.weights = {n: p.detach().clone() for n, p in engine.named_parameters()}
        return result
    finally:
        undo()
