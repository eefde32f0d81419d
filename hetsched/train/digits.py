"""The demo's data: questions that interleave text with images of handwritten numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetsched.batch import Item, Placeholder, Sample
from hetsched.errors import DataError
from hetsched.models.llm import IGNORE
from hetsched.train.questions import DEFAULT_MIX, ENCODER, NUM_VARIANTS, TOKENIZER, NumberImage, Question, draw_question
from hetsched.train.scans import SIDE, Augmentation, Split
from hetsched.train.tokenizer import END, IMAGE

_MOST_KNOWN = 4096


class DigitsSource:
    """Questions about images of numbers; a `hetsched.batch.DataSource`.

    Sample ``i`` depends on (seed, split, i) alone. An image is 8 pixels high and 8 to 24 wide; the scans of the
    two splits are disjoint. Training images come in augmented variants; equal keys are equal pixels.

    Args:
        split: "train" or "held_out".
        seed: seed of questions and augmentation.
        patch: side of a patch, in pixels.
        merge: side of the square of patches that become one row of the LLM.
        mix: share of each kind of question.

    Raises:
        DataError: patch * merge does not divide the 8 pixels of a scan, or an unknown split.
    """

    def __init__(
        self,
        split: Split,
        *,
        seed: int,
        patch: int,
        merge: int,
        mix: Mapping[str, float] = DEFAULT_MIX,
    ) -> None:
        if SIDE % (patch * merge):
            raise DataError(f"rows of {patch * merge} pixels (patch {patch}, merge {merge}) do not divide {SIDE}")
        if split not in ("train", "held_out"):
            raise DataError(f"split {split!r} is not one of train, held_out")
        self.split, self.seed, self.patch, self.merge, self.mix = split, seed, patch, merge, dict(mix)
        self._augmentation = Augmentation()
        # A step asks for each of its samples several times: to describe, to load, to check.
        self._known: dict[int, tuple[Question, Sample]] = {}
        self._variants: dict[int, NDArray[np.float32]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return TOKENIZER.vocab_size

    @property
    def placeholder_id(self) -> int:
        """The id that stands, once for each row, where an image goes."""
        return TOKENIZER.id(IMAGE)

    def question(self, index: int) -> Question:
        """The question of sample ``index``."""
        return self._remembered(index)[0]

    def kind(self, index: int) -> str:
        """The kind of question that sample ``index`` asks."""
        return self.question(index).kind

    def describe(self, index: int) -> Sample:
        """Sample ``index`` as integers; looks at no pixels."""
        return self._remembered(index)[1]

    def _remembered(self, index: int) -> tuple[Question, Sample]:
        if index not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            random = Random(f"{self.seed}/{self.split}/{index}")
            question = draw_question(random, split=self.split, mix=self.mix)
            self._known[index] = question, self._describe(index, question)
        return self._known[index]

    def _describe(self, index: int, question: Question) -> Sample:
        num_tokens, placeholders = 0, []
        for part in question.prompt:
            if isinstance(part, NumberImage):
                item = self._item(part)
                placeholders.append(Placeholder(item, num_tokens))
                num_tokens += item.num_rows
            else:
                num_tokens += len(TOKENIZER.encode(part))
        # The last token of the answer is predicted and never read, so the sequence ends one token before it.
        weight = len(TOKENIZER.encode(question.answer)) + 1
        return Sample(index, num_tokens + weight - 1, weight, tuple(placeholders))

    def load_sample(self, index: int) -> dict[str, Tensor]:
        """``ids`` and ``labels`` of sample ``index``, int64; labels are shifted, -100 outside of the answer."""
        question = self.question(index)
        prompt: list[int] = []
        for part in question.prompt:
            if isinstance(part, NumberImage):
                prompt += [self.placeholder_id] * self._item(part).num_rows
            else:
                prompt += TOKENIZER.encode(part)
        answer = TOKENIZER.encode(f"{question.answer} {END}")
        return {
            "ids": torch.tensor(prompt + answer[:-1]),
            "labels": torch.tensor([IGNORE] * (len(prompt) - 1) + answer),
        }

    def load_item(self, module: str, key: int) -> dict[str, Tensor]:
        """``patches``, float32 ``[n, patch^2]``, and their ``row_col``, int64 ``[n, 2]``, in the `merge_order`."""
        image = NumberImage.of_key(key)
        canvas = np.concatenate([self._scan(scan, image.variant) for scan in image.scans], axis=1)
        rows, columns = SIDE // self.patch, canvas.shape[1] // self.patch
        patches = canvas.reshape(rows, self.patch, columns, self.patch).swapaxes(1, 2)
        row_col = merge_order(rows, columns, merge=self.merge)
        in_order = patches[row_col[:, 0], row_col[:, 1]].reshape(len(row_col), -1)
        return {"patches": torch.from_numpy(in_order), "row_col": torch.from_numpy(row_col.copy())}

    def _item(self, image: NumberImage) -> Item:
        patches_per_row = self.merge * self.merge
        num_patches = len(image.scans) * (SIDE // self.patch) ** 2
        return Item(ENCODER, image.key, num_patches, num_patches // patches_per_row)

    def _scan(self, scan: int, variant: int) -> NDArray[np.float32]:
        if scan not in self._variants:
            self._variants[scan] = self._augmentation.variants(scan, num_variants=NUM_VARIANTS, seed=self.seed)
        shown: NDArray[np.float32] = self._variants[scan][variant]
        return shown


@cache
def merge_order(rows: int, columns: int, *, merge: int) -> NDArray[np.int64]:
    """Rows and columns of a grid of patches, those that merge into one row of the LLM one after the other.

    Args:
        rows, columns: size of the grid, multiples of ``merge``.
        merge: side of the square of patches that merge.

    Returns:
        int64 ``[rows * columns, 2]``: squares in reading order, patches in reading order within each.
    """
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    squares = grid.reshape(rows // merge, merge, columns // merge, merge, 2).swapaxes(1, 2)
    return squares.reshape(-1, 2)
