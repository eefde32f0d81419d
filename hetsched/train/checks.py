"""What a batch must fulfil before its rows meet: each fault is a DataError that names the sample.

`check_description` needs metadata alone, so every rank raises it alike. The other two look at loaded
tensors, so only the ranks that loaded them raise; the engine tells the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hetsched.batch import Item, Sample
from hetsched.errors import DataError


def check_description(sample: Sample, *, merge: Mapping[str, int]) -> None:
    """Check a sample's placeholders against its length and its items' rows.

    Args:
        sample: the description.
        merge: encoder's name -> inputs that become one row; encoders that are not named are not checked.

    Raises:
        DataError: an item's rows are not its inputs / merge; placeholders overlap, are out of order or
            outside of the sequence; a weight that the sequence cannot hold.
    """
    end = 0
    for placeholder in sample.placeholders:
        item, start = placeholder.item, placeholder.start
        inputs_per_row = merge.get(item.module)
        if inputs_per_row is not None and item.num_inputs != item.num_rows * inputs_per_row:
            raise DataError(
                f"sample {sample.index}: item {item.key} of {item.module} has {item.num_inputs} inputs, "
                f"{inputs_per_row} to a row, and cannot fill {item.num_rows} rows"
            )
        if start < end:
            raise DataError(
                f"sample {sample.index}: the placeholder at {start} begins before the one before it ends, at {end}"
            )
        end = start + item.num_rows
        if end > sample.num_tokens:
            raise DataError(
                f"sample {sample.index}: the placeholder at {start} ends at {end}, after the {sample.num_tokens} tokens"
            )
    if not 0 <= sample.weight <= sample.num_tokens:
        raise DataError(f"sample {sample.index}: weight {sample.weight} with {sample.num_tokens} tokens")


def check_sample(sample: Sample, inputs: Mapping[str, Tensor], *, vocab: int, placeholder_id: int | None) -> None:
    """Check the loaded tensors of a sample against its description and the model.

    Args:
        sample: the description.
        inputs: ``ids`` and ``labels``, int64 ``[num_tokens]``.
        vocab: number of token ids of the model.
        placeholder_id: the id that stands, once for each row, where an item goes; None if the source has none.

    Raises:
        DataError: a wrong shape or dtype, an id or label outside the vocabulary, placeholder ids that are not
            where the description says, labels that are not as many as the weight.
    """
    for name in ("ids", "labels"):
        tensor = inputs[name]
        if tensor.dtype != torch.int64 or tensor.shape != (sample.num_tokens,):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise DataError(f"sample {sample.index}: {name} is {found}, not torch.int64 [{sample.num_tokens}]")
    ids, labels = inputs["ids"], inputs["labels"]
    is_target = labels != -100
    for name, values in (("token id", ids), ("label", labels[is_target])):
        outside = values[(values < 0) | (values >= vocab)]
        if outside.numel():
            raise DataError(f"sample {sample.index}: {name} {int(outside[0])} is outside the vocabulary of {vocab}")
    if placeholder_id is not None:
        described = torch.zeros(sample.num_tokens, dtype=torch.bool)
        for placeholder in sample.placeholders:
            described[placeholder.start : placeholder.start + placeholder.item.num_rows] = True
        differs = ((ids == placeholder_id) != described).nonzero()
        if differs.numel():
            raise DataError(
                f"sample {sample.index}: {int((ids == placeholder_id).sum())} placeholder tokens for "
                f"{int(described.sum())} rows; they differ first at position {int(differs[0])}"
            )
    if int(is_target.sum()) != sample.weight:
        raise DataError(f"sample {sample.index}: {int(is_target.sum())} labels, but its weight is {sample.weight}")


def check_item(item: Item, inputs: Mapping[str, Tensor], *, sample: int, patch: int) -> None:
    """Check the loaded tensors of an image.

    Args:
        item: the description.
        inputs: ``patches``, floating ``[num_inputs, patch * patch]``, and ``row_col``, int64 ``[num_inputs, 2]``.
        sample: index of a sample that uses it, for the message.
        patch: side of a patch, in pixels.

    Raises:
        DataError: a wrong shape or dtype, a pixel that is not finite, a negative row or column.
    """
    where = f"sample {sample}: image {item.key} of {item.module}"
    patches, row_col = inputs["patches"], inputs["row_col"]
    if not patches.is_floating_point() or patches.shape != (item.num_inputs, patch * patch):
        found = f"{patches.dtype} {list(patches.shape)}"
        raise DataError(f"{where} is corrupt: patches is {found}, not floating [{item.num_inputs}, {patch * patch}]")
    if row_col.dtype != torch.int64 or row_col.shape != (item.num_inputs, 2):
        found = f"{row_col.dtype} {list(row_col.shape)}"
        raise DataError(f"{where} is corrupt: row_col is {found}, not torch.int64 [{item.num_inputs}, 2]")
    if not patches.isfinite().all():
        raise DataError(f"{where} is corrupt: {int((~patches.isfinite()).sum())} pixels are not finite")
    if (row_col < 0).any():
        raise DataError(f"{where} is corrupt: a row or column is negative")
