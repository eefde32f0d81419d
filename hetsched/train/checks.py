"""What the reference model demands of its data beyond what every engine checks.

Each fault is a DataError; the engine adds the sample's name and raises it on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hetsched.batch import DataSource, Sample
from hetsched.errors import DataError
from hetsched.models.llm import IGNORE
from hetsched.plan import Plan
from hetsched.plan.model import LLMConfig, VisionConfig


class CheckedSource:
    """A source whose samples and items are checked against the reference model as they are loaded.

    Args:
        source: what is checked.
        plan: states the sizes of the model.
        placeholder_id: the id that stands, once for each row, where an item goes.
    """

    def __init__(self, source: DataSource, plan: Plan, *, placeholder_id: int) -> None:
        assert plan.model is not None
        sink = plan.model[plan.sink]
        assert isinstance(sink, LLMConfig)
        self._source, self._vocab, self._placeholder_id = source, sink.vocab, placeholder_id
        self._vision = {name: c for name, c in plan.model.items() if isinstance(c, VisionConfig)}

    def describe(self, index: int) -> Sample:
        """The sample's description. Raises DataError: an unknown encoder, or rows that are not patches / merge^2."""
        sample = self._source.describe(index)
        for item in (placeholder.item for placeholder in sample.placeholders):
            if item.module not in self._vision:
                raise DataError(f"sample {index}: image {item.key} is for {item.module!r}, no encoder of the plan")
            per_row = self._vision[item.module].patches_per_row
            if item.num_inputs != item.num_rows * per_row:
                raise DataError(
                    f"sample {index}: image {item.key} has {item.num_inputs} patches, {per_row} to a row, "
                    f"and cannot fill {item.num_rows} rows"
                )
        return sample

    def load_sample(self, index: int) -> Mapping[str, Tensor]:
        """Ids and labels, checked; see ``check_sample``."""
        inputs = self._source.load_sample(index)
        check_sample(self.describe(index), inputs, vocab=self._vocab, placeholder_id=self._placeholder_id)
        return inputs

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]:
        """Patches and their places, checked; see ``check_item``."""
        inputs = self._source.load_item(module, key)
        check_item(inputs, patch=self._vision[module].patch)
        return inputs


def check_sample(sample: Sample, inputs: Mapping[str, Tensor], *, vocab: int, placeholder_id: int) -> None:
    """Check the loaded tensors of a sample against its description and the model.

    Args:
        sample: the description.
        inputs: ``ids`` and ``labels``, int64 ``[num_tokens]``.
        vocab: number of token ids of the model.
        placeholder_id: the id that stands, once for each row, where an item goes.

    Raises:
        DataError: a wrong shape or dtype, an id or label outside the vocabulary, placeholder ids that are not
            where the description says, labels that are not as many as the weight.
    """
    for name in ("ids", "labels"):
        tensor = inputs[name]
        if tensor.dtype != torch.int64 or tensor.shape != (sample.num_tokens,):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise DataError(f"{name} is {found}, not torch.int64 [{sample.num_tokens}]")
    # Short lists are quicker to look through than tensors.
    ids, labels = inputs["ids"].tolist(), inputs["labels"].tolist()
    targets = [label for label in labels if label != IGNORE]
    for name, values in (("token id", ids), ("label", targets)):
        outside = next((value for value in values if not 0 <= value < vocab), None)
        if outside is not None:
            raise DataError(f"{name} {outside} is outside the vocabulary of {vocab}")
    places = [i for i, value in enumerate(ids) if value == placeholder_id]
    described = [i for p in sample.placeholders for i in range(p.start, p.start + p.item.num_rows)]
    if places != described:
        differs = min(set(places) ^ set(described))
        raise DataError(
            f"{len(places)} placeholder tokens for {len(described)} rows; they differ first at position {differs}"
        )
    if len(targets) != sample.weight:
        raise DataError(f"{len(targets)} labels, but its weight is {sample.weight}")


def check_item(inputs: Mapping[str, Tensor], *, patch: int) -> None:
    """Check the loaded tensors of an image.

    Args:
        inputs: ``patches``, floating ``[n, patch * patch]``, and ``row_col``, int64 ``[n, 2]``.
        patch: side of a patch, in pixels.

    Raises:
        DataError: a wrong shape or dtype, a negative row or column.
    """
    patches, row_col = inputs["patches"], inputs["row_col"]
    if not patches.is_floating_point() or patches.ndim != 2 or patches.shape[1] != patch * patch:
        found = f"{patches.dtype} {list(patches.shape)}"
        raise DataError(f"a corrupt image: patches is {found}, not floating [n, {patch * patch}]")
    if row_col.dtype != torch.int64 or row_col.shape != (len(patches), 2):
        found = f"{row_col.dtype} {list(row_col.shape)}"
        raise DataError(f"a corrupt image: row_col is {found}, not torch.int64 [{len(patches)}, 2]")
    if (row_col < 0).any():
        raise DataError("a corrupt image: a row or column is negative")
