"""A data source with every awkward shape: ragged items, items used twice, samples without any."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hetsched.batch import Item, Placeholder, Sample

VOCAB = 50
PATCH = 4


class RaggedSource:
    """Random samples, fixed by (seed, index).

    Args:
        seed: of all contents.
        items: ``"many"``: zero to four items a sample, some shared between samples; ``"few"``: only every
            sixth sample has one; ``"none"``; ``"equal"``: all samples and items have the same sizes.
        modules: encoders that items go to, in turn.
    """

    def __init__(self, seed: int, *, items: str = "many", modules: tuple[str, ...] = ("vision",)) -> None:
        self.seed, self.items, self.modules = seed, items, modules

    def describe(self, index: int) -> Sample:
        if self.items == "equal":
            item = Item(self.modules[0], 5 * index, num_inputs=8, num_rows=2)
            return Sample(index, 8, int((self._labels(index, 8) >= 0).sum()), (Placeholder(item, 1),))
        random = self._random(index)
        start, placeholders = 1, []
        for i in range(self._num_items(index, random)):
            key = int(torch.randint(0, 12, (), generator=random))
            item = self._item(self.modules[i % len(self.modules)], key)
            placeholders.append(Placeholder(item, start))
            start += item.num_rows + int(torch.randint(0, 3, (), generator=random))
        num_tokens = start + int(torch.randint(2, 9, (), generator=random))
        return Sample(index, num_tokens, int((self._labels(index, num_tokens) >= 0).sum()), tuple(placeholders))

    def load_sample(self, index: int) -> Mapping[str, Tensor]:
        num_tokens = self.describe(index).num_tokens
        ids = torch.randint(0, VOCAB, (num_tokens,), generator=self._random(10_000 + index))
        return {"ids": ids, "labels": self._labels(index, num_tokens)}

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]:
        columns = 4 if self.items == "equal" else 2 * self._item(module, key).num_rows
        random = self._random(20_000 + 100 * self.modules.index(module) + key)
        row, column = torch.meshgrid(torch.arange(2), torch.arange(columns), indexing="ij")
        patches = torch.rand(2 * columns, PATCH * PATCH, generator=random, dtype=torch.float64)
        return {"patches": patches, "row_col": torch.stack((row, column), -1).reshape(-1, 2)}

    def _num_items(self, index: int, random: torch.Generator) -> int:
        if self.items == "none" or (self.items == "few" and index % 6):
            return 0
        return int(torch.randint(0, 5, (), generator=random)) if self.items == "many" else 1

    @staticmethod
    def _item(module: str, key: int) -> Item:
        num_rows = 1 + key % 5
        return Item(module, key, num_inputs=4 * num_rows, num_rows=num_rows)

    def _labels(self, index: int, num_tokens: int) -> Tensor:
        random = self._random(30_000 + index)
        labels = torch.randint(0, VOCAB, (num_tokens,), generator=random)
        labels[torch.rand(num_tokens, generator=random) < 0.4] = -100
        labels[-1] = 3
        return labels

    def _random(self, salt: int) -> torch.Generator:
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)
