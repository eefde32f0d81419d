"""The reference training loop: steps, clipping, optimizer, held-out evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hetsched.batch import Batch, Sample
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.plan.model import VisionConfig
from hetsched.runtime.engine import Engine
from hetsched.runtime.report import StepReport
from hetsched.train.checks import CheckedSource
from hetsched.train.digits import DigitsSource
from hetsched.train.metrics import Tally, exact_answers, of_pixels, swap_items, tally
from hetsched.train.optimizer import learning_rate, make_optimizer

CHUNK = 128
"""Held-out samples of one evaluation step."""


@dataclass(frozen=True)
class Evaluation:
    """Held-out questions.

    Args:
        loss: mean over the answers' tokens.
        exact: kind of question -> questions asked and answered exactly.
        pixels: those kinds together that cannot be answered without looking.
        pixels_swapped: the same with the images exchanged between samples.
    """

    loss: float
    exact: dict[str, Tally]
    pixels: Tally
    pixels_swapped: Tally


class Trainer:
    """Trains the reference model on digits, on every rank of a job alike.

    Args:
        plan: with model, data and training.
        is_debug: as in Engine.
    """

    def __init__(self, plan: Plan, *, is_debug: bool = False) -> None:
        assert plan.training is not None
        assert plan.data is not None
        self.engine = Engine(plan, builders(plan), is_debug=is_debug)
        self._plan, self._training, self._data = plan, plan.training, plan.data
        self._optimizer = make_optimizer(self.engine.parameters(), self._training)
        self._train, self._train_checked = self._source("train")
        self._heldout, self._heldout_checked = self._source("held_out")
        self._questions = [self._heldout_checked.describe(index) for index in range(self._data.num_heldout)]
        # Here, so that too few of them are refused before any step.
        self._swapped_questions = swap_items(self._questions)

    def _source(self, split: str) -> tuple[DigitsSource, CheckedSource]:
        assert self._plan.model is not None
        vision = next(c for c in self._plan.model.values() if isinstance(c, VisionConfig))
        source = DigitsSource(split, seed=self._data.seed, patch=vision.patch, merge=vision.merge)  # type: ignore[arg-type]
        return source, CheckedSource(source, self._plan, placeholder_id=source.placeholder_id)

    def train(self, num_steps: int, *, after_step: Callable[[int, StepReport, float], None]) -> None:
        """Do the first ``num_steps`` of the plan's steps.

        Args:
            num_steps: steps to do.
            after_step: called with the step, its report and the norm of the gradients before clipping.
        """
        upcoming: Batch | None = None
        for step in range(num_steps):
            batch = upcoming or self._batch(step)
            upcoming = self._batch(step + 1) if step + 1 < num_steps else None
            report = self.engine.step(batch, upcoming=upcoming)
            norm = self.engine.clip_grad_norm(self._training.clip_grad_norm or float("inf"))
            if self._optimizer is not None:
                for group in self._optimizer.param_groups:
                    group["lr"] = learning_rate(step, self._training)
                self._optimizer.step()
            after_step(step, report, norm)

    def _batch(self, step: int) -> Batch:
        first = step * self._data.batch_size
        return Batch.of(self._train_checked, range(first, first + self._data.batch_size))

    def evaluate(self) -> Evaluation:
        """Ask the held-out questions, with their images and with those of others."""
        loss, exact = self._ask(self._questions)
        _, exact_swapped = self._ask(self._swapped_questions)
        kinds = [self._heldout.kind(sample.index) for sample in self._questions]
        tallies = tally(kinds, exact)
        return Evaluation(loss, tallies, of_pixels(tallies), of_pixels(tally(kinds, exact_swapped)))

    def _ask(self, samples: Sequence[Sample]) -> tuple[float, list[bool]]:
        """Mean loss per target, and for each sample whether its answer is exactly right."""
        total, exact = 0.0, []
        for first in range(0, len(samples), CHUNK):
            part = tuple(samples[first : first + CHUNK])
            report = self.engine.evaluate(Batch(self._heldout_checked, part))
            total += report.loss * sum(sample.weight for sample in part)
            for sample in part:
                labels = self._heldout.load_sample(sample.index)["labels"]
                exact += exact_answers(report.outputs[sample.index], labels, [sample.num_tokens])
        return total / sum(sample.weight for sample in samples), exact
