"""Loads what this rank's own work of one step needs, and makes the metas of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hetsched.batch import Batch, DataSource, Item, Sample
from hetsched.errors import DataError
from hetsched.layout.positions import text_positions
from hetsched.layout.shares import Share
from hetsched.runtime.stage import BoundaryRows, StageMeta


def load_share(batch: Batch, share: Share) -> dict[str, Tensor]:
    """The tensors of a share's samples or items, each concatenated to ``[num_tokens, ...]``.

    Raises:
        DataError: a member cannot be loaded, or its tensors contradict its description; names the sample.
    """
    loaded: list[Mapping[str, Tensor]] = []
    for member, length in zip(share.members, share.lengths, strict=True):
        try:
            tensors = _load(batch.source, member)
            _check(tensors, length)
            if loaded and tensors.keys() != loaded[0].keys():
                raise DataError(f"its tensors are {sorted(tensors)}, those of others {sorted(loaded[0])}")
        except Exception as error:
            reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            raise DataError(f"{_name(member, batch)}: {reason}") from error
        loaded.append(tensors)
    return {key: torch.cat([tensors[key] for tensors in loaded]) for key in (loaded[0] if loaded else ())}


def make_meta(
    shares: Sequence[Share],
    *,
    microbatch: int,
    inputs: Mapping[str, Tensor],
    boundary: Mapping[str, BoundaryRows],
    device: torch.device,
) -> StageMeta:
    """The meta of one call of a stage, for the shares of its microbatches; see StageMeta."""
    lengths = [length for share in shares for length in share.lengths]
    return StageMeta(
        microbatch=microbatch,
        cu_seqlens=integers([0, *accumulate(lengths)], torch.int32, device=device),
        max_seqlen=max(lengths, default=0),
        positions=integers(text_positions(lengths), torch.int64, device=device),
        inputs=inputs,
        boundary=boundary,
    )


def to_device(tensors: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors on ``device``, floating-point ones as ``dtype``."""
    return {key: t.to(device, dtype if t.is_floating_point() else t.dtype) for key, t in tensors.items()}


def integers(values: ArrayLike, dtype: torch.dtype, *, device: torch.device) -> Tensor:
    """Numbers that the host knows, on ``device``, without making the host wait for what the device does."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _load(source: DataSource, member: Sample | Item) -> Mapping[str, Tensor]:
    if isinstance(member, Sample):
        return source.load_sample(member.index)
    return source.load_item(member.module, member.key)


def _check(tensors: Mapping[str, Tensor], length: int) -> None:
    for key, tensor in tensors.items():
        if tensor.ndim < 1 or tensor.shape[0] != length:
            raise DataError(f"{key!r} has shape {list(tensor.shape)}, but is described as {length} long")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{key!r} holds NaN or infinity")


def _name(member: Sample | Item, batch: Batch) -> str:
    """The sample, and for an item the first sample that uses it."""
    if isinstance(member, Sample):
        return f"sample {member.index}"
    user = next(s.index for s in batch.samples if any(p.item == member for p in s.placeholders))
    return f"sample {user}: item {member.key} of module {member.module}"
