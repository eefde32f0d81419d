"""Exact match for each kind of question, and the control that swaps the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetsched.batch import Item, Placeholder, Sample
from hetsched.errors import DataError
from hetsched.models.llm import IGNORE
from hetsched.train.questions import PIXEL_KINDS


@dataclass(frozen=True, slots=True)
class Tally:
    """Questions asked, and those answered exactly."""

    num_exact: int
    num_asked: int

    @property
    def exact_match(self) -> float:
        """The share that was answered exactly; 0 where none was asked."""
        return self.num_exact / self.num_asked if self.num_asked else 0.0


def exact_answers(correct: Tensor, labels: Tensor, lengths: Sequence[int]) -> list[bool]:
    """For each packed sample whether its whole answer is what greedy decoding would write.

    Args:
        correct: bool ``[tokens]``, the target is the likeliest token; see `hetsched.models.llm.LLMStage`.
        labels: int64 ``[tokens]``, -100 outside of the answers.
        lengths: tokens of each sample, in the order in which they are packed.

    Returns:
        One answer for each length.
    """
    is_fine = correct | (labels == IGNORE)
    return [bool(part.all()) for part in torch.split(is_fine, list(lengths))]


def tally(kinds: Sequence[str], exact: Sequence[bool]) -> dict[str, Tally]:
    """Exact match for each kind of question.

    Args:
        kinds: the kind of each question.
        exact: whether it was answered exactly.

    Returns:
        Kind -> tally, by name.
    """
    answers: dict[str, list[bool]] = {}
    for kind, is_exact in zip(kinds, exact, strict=True):
        answers.setdefault(kind, []).append(is_exact)
    return {kind: Tally(sum(answers[kind]), len(answers[kind])) for kind in sorted(answers)}


def of_pixels(tallies: dict[str, Tally]) -> Tally:
    """All questions whose answer cannot be known without looking, as one tally."""
    looked = [tallies[kind] for kind in tallies if kind in PIXEL_KINDS]
    return Tally(sum(t.num_exact for t in looked), sum(t.num_asked for t in looked))


def swap_items(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with their items exchanged for those of other samples: text, lengths and sizes stay.

    A model that looks at its images cannot answer then. Each placeholder receives the item that an equally large
    placeholder of another sample had.

    Args:
        samples: descriptions of a batch, or of a whole evaluation set.

    Returns:
        The samples, in order.

    Raises:
        DataError: the items of one size are mostly of one sample, so that they cannot go to another.
    """
    owners: dict[tuple[str, int, int], list[tuple[int, Item]]] = {}
    for sample in samples:
        for item in (placeholder.item for placeholder in sample.placeholders):
            owners.setdefault(_size(item), []).append((sample.index, item))
    # Samples follow each other in a pool, so moving by half of it leaves a sample's own part of it.
    entering = {size: iter(pool[len(pool) // 2 :] + pool[: len(pool) // 2]) for size, pool in owners.items()}

    def swap(sample: Sample, placeholder: Placeholder) -> Placeholder:
        owner, item = next(entering[_size(placeholder.item)])
        if owner == sample.index:
            raise DataError(f"sample {sample.index}: no other sample has an image to swap; swap more samples at once")
        return replace(placeholder, item=item)

    return tuple(replace(s, placeholders=tuple(swap(s, p) for p in s.placeholders)) for s in samples)


def _size(item: Item) -> tuple[str, int, int]:
    return item.module, item.num_inputs, item.num_rows
