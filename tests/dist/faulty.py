"""Data with one fault, and what ranks do when they meet it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.batch import Batch, Placeholder, Sample
from hetsched.errors import HetschedError
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.train.checks import CheckedSource
from hetsched.train.digits import DigitsSource

BAD = 5
"""The sample that has the fault; it has images that no other sample of the batch has."""
BATCH = range(8)


def _longer_image(sample: Sample) -> Sample:
    first, *others = sample.placeholders
    item = replace(first.item, num_rows=first.item.num_rows + 1)
    return replace(sample, placeholders=(replace(first, item=item), *others))


def _image_too_late(sample: Sample) -> Sample:
    return replace(sample, placeholders=(Placeholder(sample.placeholders[0].item, sample.num_tokens),))


def _unknown_module(sample: Sample) -> Sample:
    item = replace(sample.placeholders[0].item, module="audio")
    return replace(sample, placeholders=(Placeholder(item, 0),))


def _no_placeholder(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    ids = inputs["ids"].clone()
    ids[(ids == 0).nonzero()[0]] = 1
    return inputs | {"ids": ids}


def _outside(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return inputs | {"ids": torch.cat((inputs["ids"][:-1], torch.tensor([1000])))}


def _short(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:-1] for name, tensor in inputs.items()}


def _nan(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    patches = inputs["patches"].clone()
    patches[-1, -1] = torch.nan
    return inputs | {"patches": patches}


def _unreadable(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    raise OSError("the disk is gone")


DESCRIPTIONS: dict[str, Callable[[Sample], Sample]] = {
    "more rows than patches": _longer_image,
    "an image after the end": _image_too_late,
    "an image for no encoder": _unknown_module,
}
SAMPLES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a placeholder too few": _no_placeholder,
    "an id outside the vocabulary": _outside,
    "a sample too short": _short,
    "an unreadable sample": _unreadable,
}
ITEMS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a NaN in an image": _nan,
    "an image too short": _short,
    "an image of other patches": lambda inputs: inputs | {"patches": inputs["patches"][:, 1:]},
    "an unreadable image": _unreadable,
}


class Faulty:
    """The held-out digits with one fault."""

    def __init__(self, fault: str | None) -> None:
        self.source = DigitsSource("held_out", seed=0, patch=4, merge=2)
        self._fault = fault or ""
        self._bad_key = self.source.describe(BAD).placeholders[0].item.key

    def describe(self, index: int) -> Sample:
        sample = self.source.describe(index)
        return DESCRIPTIONS[self._fault](sample) if index == BAD and self._fault in DESCRIPTIONS else sample

    def load_sample(self, index: int) -> Mapping[str, Tensor]:
        inputs = self.source.load_sample(index)
        return SAMPLES[self._fault](inputs) if index == BAD and self._fault in SAMPLES else inputs

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]:
        inputs = self.source.load_item(module, key)
        return ITEMS[self._fault](inputs) if key == self._bad_key and self._fault in ITEMS else inputs


@dataclass
class Met:
    """What a rank raised at the fault, and the loss of a good batch right after."""

    error: str
    message: str
    loss_after: float


def meet(plan: Plan, fault: str, how: str) -> Met:
    """A step with a fault (``"evaluate"``: forward only; ``"ahead"``: prepared during another), then one without."""
    engine = Engine(plan, builders(plan), timeout_s=30.0)
    run = engine.evaluate if how == "evaluate" else engine.step
    error = message = ""
    try:
        batch = _batch(plan, fault)
        if how == "ahead":
            assert math.isfinite(engine.step(_batch(plan, None), upcoming=batch).loss)
        run(batch)
    except HetschedError as raised:
        error, message = type(raised).__name__, str(raised)
    return Met(error, message, run(_batch(plan, None)).loss)


def _batch(plan: Plan, fault: str | None) -> Batch:
    source = Faulty(fault)
    return Batch.of(CheckedSource(source, plan, placeholder_id=source.source.placeholder_id), BATCH)


def start_with(plans: list[Plan]) -> str:
    """What a rank says as it makes an engine of the plan that is its own."""
    plan = plans[dist.get_rank()]
    try:
        Engine(plan, builders(plan))
    except HetschedError as raised:
        return f"{type(raised).__name__}: {raised}"
    return "started"
