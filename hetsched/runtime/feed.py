"""Loads what this rank's own work of one step needs, and makes the metas of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hetsched.batch import Batch, DataSource, Item, Sample
from hetsched.errors import DataError
from hetsched.layout.held import Held
from hetsched.layout.positions import text_positions
from hetsched.runtime.stage import ContextShard, StageMeta


def load_held(batch: Batch, held: Held, *, cp: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a share's samples or items, concatenated to ``[num_tokens, ...]``: the rows of one cp rank.

    A rank loads whole samples, and none of which it has no token. The host does not wait for what the device does.

    Args:
        batch, held: what, and whose.
        cp: of this rank.
        device: where the tensors go.
        dtype: of those that are floating-point; others keep theirs.

    Raises:
        DataError: a member cannot be loaded, or its tensors contradict its description; names the sample.
    """
    loaded: list[tuple[Mapping[str, Tensor], Tensor | None]] = []
    for member, positions, _ in held.by_member(cp):
        try:
            tensors = _load(batch.source, member)
            length = member.num_tokens if isinstance(member, Sample) else member.num_inputs
            _check(tensors, length)
            if loaded:
                _check_alike(tensors, loaded[0][0])
        except Exception as error:
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise DataError(f"{_name(member, batch)}: {reason}") from error
        loaded.append((tensors, None if len(positions) == length else torch.from_numpy(positions)))
    keys = loaded[0][0] if loaded else ()
    return {key: _together([(tensors[key], rows) for tensors, rows in loaded], device, dtype) for key in keys}


def _together(parts: Sequence[tuple[Tensor, Tensor | None]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows of tensors (all where none are named), one after the other: written once, where the device fetches them."""
    first, _ = parts[0]
    counts = [len(tensor) if rows is None else len(rows) for tensor, rows in parts]
    shape, is_pinned = (sum(counts), *first.shape[1:]), device.type != "cpu"
    whole = torch.empty(shape, dtype=dtype if first.is_floating_point() else first.dtype, pin_memory=is_pinned)
    for to, (tensor, rows) in zip(torch.split(whole, counts), parts, strict=True):
        to.copy_(tensor if rows is None else tensor[rows])
    return whole.to(device, non_blocking=True)


def make_meta(
    held: Sequence[Held],
    cp: int,
    *,
    microbatch: int,
    inputs: Mapping[str, Tensor],
    device: torch.device,
) -> StageMeta:
    """The meta of one call of a stage but for what enters it, for what a cp rank holds of its microbatches."""
    lengths = [length for of in held for length in of.share.lengths]
    positions, (first, *_) = text_positions(lengths), held
    shard = None
    if first.tokens is not None:
        positions = positions[first.positions(cp)]
        shard = ContextShard(first.share.cu_seqlens, first.tokens, cp)
    return StageMeta(
        microbatch=microbatch,
        cu_seqlens=integers([0, *accumulate(lengths)], torch.int32, device=device),
        max_seqlen=max(lengths, default=0),
        positions=integers(positions, torch.int64, device=device),
        inputs=inputs,
        shard=shard,
    )


def integers(values: ArrayLike, dtype: torch.dtype, *, device: torch.device) -> Tensor:
    """Numbers that the host knows, on ``device``, without making the host wait for what the device does."""
    numbers = torch.as_tensor(values, dtype=dtype)
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def _load(source: DataSource, member: Sample | Item) -> Mapping[str, Tensor]:
    if isinstance(member, Sample):
        return source.load_sample(member.index)
    return source.load_item(member.module, member.key)


def _check(tensors: Mapping[str, Tensor], length: int) -> None:
    for key, tensor in tensors.items():
        if tensor.ndim < 1 or tensor.shape[0] != length:
            raise DataError(f"{key!r} has shape {list(tensor.shape)}, but is described as {length} long")
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise DataError(f"{key!r} holds NaN or infinity")


def _check_alike(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    if tensors.keys() != others.keys():
        raise DataError(f"its tensors are {sorted(tensors)}, those of others {sorted(others)}")
    for key, tensor in tensors.items():
        wanted = others[key]
        is_cast = tensor.is_floating_point() and wanted.is_floating_point()
        if tensor.shape[1:] != wanted.shape[1:] or not (is_cast or tensor.dtype == wanted.dtype):
            raise DataError(
                f"{key!r} has rows {list(tensor.shape[1:])} of {tensor.dtype}, those of others are "
                f"{list(wanted.shape[1:])} of {wanted.dtype}"
            )


def _is_finite(tensor: Tensor) -> bool:
    # A sum is finite only if all is, and takes a small part of the time; one that overflows says nothing.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _name(member: Sample | Item, batch: Batch) -> str:
    """The sample, and for an item the first sample that uses it."""
    if isinstance(member, Sample):
        return f"sample {member.index}"
    user = next(s.index for s in batch.samples if any(p.item == member for p in s.placeholders))
    return f"sample {user}: item {member.key} of module {member.module}"
