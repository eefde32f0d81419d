"""What is known of a batch without loading it: samples, items and placeholders, as integers.

Every rank holds the metadata of the global batch; only the ranks that work on a sample or an item load it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Item:
    """One image, clip or audio segment.

    Args:
        module: the encoder that turns it into rows.
        key: names the item within its module; equal keys are the same item.
        num_inputs: tokens that the encoder sees (patches, frames).
        num_rows: rows that the encoder's last stage produces for it.

    Raises:
        TypeError: the key is no integer.
        ValueError: it has more than 64 bits.
    """

    module: str
    key: int
    num_inputs: int
    num_rows: int

    def __post_init__(self) -> None:
        if not isinstance(self.key, int | np.integer):
            raise TypeError(f"Item.key must be an integer, not {self.key!r}: number the items of a module")
        if not -(2**63) <= self.key < 2**63:
            raise ValueError(f"Item.key is {self.key}; it has 64 bits at most, one of them for the sign")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A run of ``item.num_rows`` token positions of a sample, from ``start``, filled by the item's rows."""

    item: Item
    start: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One training example.

    Args:
        index: names the sample within its source.
        num_tokens: length of its sequence, placeholders included.
        weight: its share of the loss's divisor, usually the number of target tokens.
        placeholders: where items enter, ascending by start and disjoint.
    """

    index: int
    num_tokens: int
    weight: int
    placeholders: tuple[Placeholder, ...] = ()


class DataSource(Protocol):
    """What a trainer's author implements to feed an Engine.

    ``describe`` needs no pixels and gives the same answer on every rank. The loaders run only on the
    ranks that need their result; each returned tensor's first dimension is ``num_tokens`` of the sample,
    or ``num_inputs`` of the item, and the engine concatenates them along it.
    """

    def describe(self, index: int) -> Sample: ...

    def load_sample(self, index: int) -> Mapping[str, Tensor]: ...

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step, over all microbatches and replicas, and where to load them from."""

    source: DataSource
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, source: DataSource, indices: Sequence[int]) -> Batch:
        """The batch of the samples ``indices`` of ``source``."""
        return cls(source, tuple(source.describe(index) for index in indices))

    @property
    def digest(self) -> int:
        """Below 2**63; equal on two ranks whose samples are described alike."""
        placeholders = [p for sample in self.samples for p in sample.placeholders]
        of_samples = [(s.index, s.num_tokens, s.weight, len(s.placeholders)) for s in self.samples]
        of_items = [(p.start, p.item.key, p.item.num_inputs, p.item.num_rows) for p in placeholders]
        sha = hashlib.sha256(np.array(of_samples + of_items, np.int64).tobytes())
        sha.update(" ".join(p.item.module for p in placeholders).encode())
        return int.from_bytes(sha.digest()[:8], "little") >> 1
