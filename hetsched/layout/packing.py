"""Samples into packed token sequences: which samples share a sequence, and which tokens are predicted.

A packed sequence is its samples one after the other, without padding, in a Share: its ``cu_seqlens`` are the
boundaries and its ``placeholders`` say where the items' rows go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hetsched import _core
from hetsched.batch import Sample
from hetsched.errors import DataError
from hetsched.layout.shares import Share

IntArray = NDArray[np.int64]


def pack(lengths: Sequence[int] | IntArray, *, capacity: int, keep_order: bool = False) -> IntArray:
    """The sequence that each sample goes into.

    Args:
        lengths: tokens of each sample.
        capacity: tokens that a sequence holds at most.
        keep_order: sequences are runs of consecutive samples; otherwise best fit decreasing, which fills
            nearly all of each sequence.

    Returns:
        int64 ``[num_samples]``, sequences numbered from 0.

    Raises:
        DataError: a sample is longer than the capacity; the message names it by its place.

    Source: Johnson 1974, best fit decreasing; O(n log n).
    """
    array = np.asarray(lengths, dtype=np.int64)
    too_long = np.flatnonzero(array > capacity)
    if too_long.size:
        place = int(too_long[0])
        raise DataError(f"sample {place} has {int(array[place])} tokens, but a packed sequence holds {capacity}")
    return _core.pack_in_order(array, capacity) if keep_order else _core.pack_best_fit(array, capacity)


def pack_samples(samples: Sequence[Sample], *, capacity: int, keep_order: bool = False) -> list[Share]:
    """The samples as packed sequences; within a sequence they keep their order.

    Args:
        samples: any number of them, of any length up to the capacity.
        capacity, keep_order: as for ``pack``.

    Returns:
        One Share per sequence.

    Raises:
        DataError: a sample is longer than the capacity; the message names it by its index.
    """
    for sample in samples:
        if sample.num_tokens > capacity:
            raise DataError(
                f"sample {sample.index} has {sample.num_tokens} tokens, but a packed sequence holds {capacity}"
            )
    sequence_of = pack([sample.num_tokens for sample in samples], capacity=capacity, keep_order=keep_order)
    members: list[list[Sample]] = [[] for _ in range(int(sequence_of.max(initial=-1)) + 1)]
    for sample, sequence in zip(samples, sequence_of.tolist(), strict=True):
        members[sequence].append(sample)
    shares = []
    for chosen in members:
        lengths = tuple(sample.num_tokens for sample in chosen)
        shares.append(Share(tuple(chosen), lengths, sum(lengths)))
    return shares


def placeholder_mask(share: Share) -> NDArray[np.bool_]:
    """Which positions of a packed sequence are filled by items' rows, bool ``[num_tokens]``."""
    mask = np.zeros(share.num_tokens, dtype=bool)
    for sample, row in zip(share.members, share.cu_seqlens, strict=False):
        assert isinstance(sample, Sample)
        for placeholder in sample.placeholders:
            mask[row + placeholder.start : row + placeholder.start + placeholder.item.num_rows] = True
    return mask


def loss_mask(share: Share) -> NDArray[np.bool_]:
    """Which positions predict a token: those followed by a text token of the same sample, bool ``[num_tokens]``.

    It belongs to the position that predicts, not to the predicted token, so it needs no neighbor once the
    sequence is sharded.
    """
    mask = np.zeros(share.num_tokens, dtype=bool)
    mask[:-1] = ~placeholder_mask(share)[1:]
    ends = np.asarray(share.cu_seqlens[1:], dtype=np.int64)
    mask[ends[ends > 0] - 1] = False
    return mask


def shift_labels(ids: IntArray, mask: NDArray[np.bool_], *, ignored: int = -100) -> IntArray:
    """The label of each position: the token behind it where ``mask`` says it is predicted, otherwise ``ignored``.

    Args:
        ids: int64 ``[num_tokens]`` of a whole packed sequence, before any sharding.
        mask: bool ``[num_tokens]``, from ``loss_mask``, narrowed further where only answers are trained on.
        ignored: what torch's cross entropy skips.
    """
    labels = np.full_like(ids, ignored)
    predicting = np.flatnonzero(mask)
    labels[predicting] = ids[predicting + 1]
    return labels
