"""Loads what this rank's own work of one step needs, and makes the metas of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hetsched.batch import Batch, DataSource, Item, Sample
from hetsched.errors import DataError
from hetsched.layout.held import Held
from hetsched.layout.positions import text_positions
from hetsched.runtime.parcel import Packed, Parcel, Part
from hetsched.runtime.stage import ContextShard, StageMeta

_RETURN = "return a mapping of names to tensors"


def load_held(batch: Batch, held: Held, *, cp: int) -> dict[str, list[Part]]:
    """The tensors of a share's samples or items, to be concatenated to ``[num_tokens, ...]``: the rows of one cp rank.

    A rank loads whole samples, and none of which it has no token.

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
    return {key: [(tensors[key], rows) for tensors, rows in loaded] for key in keys}


@dataclass(frozen=True, slots=True)
class PackedMeta:
    """The meta of one call of a stage, but for what enters it, whose tensors are in a parcel.

    Args:
        held: what the replica holds of the call's microbatches.
        cp: whose part.
        cu_seqlens, positions, inputs: as in StageMeta.
    """

    held: Sequence[Held]
    cp: int
    cu_seqlens: Packed
    positions: Packed
    inputs: Mapping[str, Packed]

    @classmethod
    def of(cls, parcel: Parcel, held: Sequence[Held], cp: int, *, inputs: Mapping[str, list[Part]]) -> PackedMeta:
        """Add its tensors to a parcel."""
        lengths = [length for of in held for length in of.share.lengths]
        positions = text_positions(lengths)
        if held[0].tokens is not None:
            positions = positions[held[0].positions(cp)]
        return cls(
            held,
            cp,
            parcel.add_integers([0, *accumulate(lengths)], torch.int32),
            parcel.add_integers(positions, torch.int64),
            {key: parcel.add(parts) for key, parts in inputs.items()},
        )

    def unpacked(self, microbatch: int) -> StageMeta:
        """The meta, once the parcel was sent."""
        first = self.held[0]
        return StageMeta(
            microbatch=microbatch,
            cu_seqlens=self.cu_seqlens.tensor,
            max_seqlen=max((length for of in self.held for length in of.share.lengths), default=0),
            positions=self.positions.tensor,
            inputs={key: packed.tensor for key, packed in self.inputs.items()},
            shard=None if first.tokens is None else ContextShard(first.share.cu_seqlens, first.tokens, self.cp),
        )


def _load(source: DataSource, member: Sample | Item) -> Mapping[str, Tensor]:
    loaded: object
    if isinstance(member, Sample):
        loaded, loader = source.load_sample(member.index), "load_sample"
    else:
        loaded, loader = source.load_item(member.module, member.key), "load_item"
    if not isinstance(loaded, Mapping):
        raise DataError(f"{loader} returned a {type(loaded).__name__}; {_RETURN}")
    for key, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise DataError(f"{loader} returned a {type(tensor).__name__} as {key!r}; {_RETURN}")
    return loaded


def _check(tensors: Mapping[str, Tensor], length: int) -> None:
    for key, tensor in tensors.items():
        if tensor.ndim < 1 or tensor.shape[0] != length:
            raise DataError(
                f"{key!r} has shape {list(tensor.shape)}, but is described as {length} long; "
                f"load {length} rows, and repeat in each what is of the whole sample or item"
            )
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
