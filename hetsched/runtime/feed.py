"""Loads what this rank's own work of one step needs, and makes the metas of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from hetsched.batch import DataSource, Item, Sample
from hetsched.errors import DataError
from hetsched.runtime.stage import BoundaryRows, StageMeta
from hetsched.stepplan import Share


def load_share(source: DataSource, share: Share) -> dict[str, Tensor]:
    """The tensors of a share's samples or items, each concatenated to ``[num_tokens, ...]``.

    Raises:
        DataError: a member cannot be loaded, or its tensors contradict its description; names it.
    """
    loaded = [_load(source, member, length) for member, length in zip(share.members, share.lengths, strict=True)]
    for member, tensors in zip(share.members, loaded, strict=True):
        if tensors.keys() != loaded[0].keys():
            raise DataError(f"{_name(member)} has {sorted(tensors)}, others of its batch {sorted(loaded[0])}")
    return {key: torch.cat([tensors[key] for tensors in loaded]) for key in (loaded[0] if loaded else ())}


def make_meta(
    share: Share,
    *,
    microbatch: int,
    inputs: Mapping[str, Tensor],
    boundary: Mapping[str, BoundaryRows],
    device: torch.device,
) -> StageMeta:
    """The meta of one stage's microbatch; see StageMeta."""
    cu_seqlens = share.cu_seqlens
    positions = [torch.arange(end - start) for start, end in pairwise(cu_seqlens)]
    return StageMeta(
        microbatch=microbatch,
        cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32, device=device),
        max_seqlen=max(share.lengths, default=0),
        positions=torch.cat([torch.empty(0, dtype=torch.int64), *positions]).to(device),
        inputs=inputs,
        boundary=boundary,
    )


def to_device(tensors: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors on ``device``, floating-point ones as ``dtype``."""
    return {key: t.to(device, dtype if t.is_floating_point() else t.dtype) for key, t in tensors.items()}


def _load(source: DataSource, member: Sample | Item, length: int) -> Mapping[str, Tensor]:
    try:
        if isinstance(member, Sample):
            tensors = source.load_sample(member.index)
        else:
            tensors = source.load_item(member.module, member.key)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{_name(member)} cannot be loaded: {type(error).__name__}: {error}") from error
    _check(member, tensors.items(), length)
    return tensors


def _check(member: Sample | Item, tensors: Iterable[tuple[str, Tensor]], length: int) -> None:
    for key, tensor in tensors:
        if tensor.ndim < 1 or tensor.shape[0] != length:
            raise DataError(f"{_name(member)}: {key!r} has shape {list(tensor.shape)}, described as {length} long")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{_name(member)}: {key!r} holds NaN or infinity")


def _name(member: Sample | Item) -> str:
    return f"sample {member.index}" if isinstance(member, Sample) else f"item {member.key} of module {member.module}"
