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
from hetsched.layout.shares import Cost, Share, share_samples

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
        raise _too_long(place, int(array[place]), capacity, longest=int(array.max()))
    return _core.pack_in_order(array, capacity) if keep_order else _core.pack_best_fit(array, capacity)


def _too_long(sample: int, num_tokens: int, capacity: int, *, longest: int) -> DataError:
    return DataError(
        f"sample {sample} has {num_tokens} tokens, but a packed sequence holds {capacity}; "
        f"set capacity to {longest} or more, which the longest sample needs, or shorten the samples"
    )


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
            longest = max(each.num_tokens for each in samples)
            raise _too_long(sample.index, sample.num_tokens, capacity, longest=longest)
    sequence_of = pack([sample.num_tokens for sample in samples], capacity=capacity, keep_order=keep_order)
    members: list[list[Sample]] = [[] for _ in range(int(sequence_of.max(initial=-1)) + 1)]
    for sample, sequence in zip(samples, sequence_of.tolist(), strict=True):
        members[sequence].append(sample)
    shares = []
    for chosen in members:
        lengths = tuple(sample.num_tokens for sample in chosen)
        shares.append(Share(tuple(chosen), lengths, sum(lengths)))
    return shares


def share_within(
    samples: Sequence[Sample], *, capacity: int, num_microbatches: int, num_replicas: int, cost: Cost
) -> list[tuple[Share, ...]]:
    """``share_samples`` where no packed sequence may hold more than ``capacity`` tokens.

    Work that is shared evenly is preferred; where that overfills a sequence, the samples are packed tightly. Then the
    replicas of a microbatch get sequences of similar work, and the last microbatches may stay empty.

    Raises:
        DataError: a sample is longer than the capacity, or the samples fill more sequences than a step has.
    """
    even = share_samples(samples, num_microbatches=num_microbatches, num_replicas=num_replicas, cost=cost)
    if all(share.num_tokens <= capacity for shares in even for share in shares):
        return even
    packed = pack_samples(samples, capacity=capacity)
    room = num_microbatches * num_replicas
    if len(packed) > room:
        raise DataError(
            f"{len(samples)} samples of {sum(s.num_tokens for s in samples)} tokens in all fill {len(packed)} packed "
            f"sequences of {capacity}, but a step has {room} ({num_microbatches} microbatches x {num_replicas} "
            "replicas); use smaller batches, more microbatches or a larger capacity"
        )
    packed.sort(key=lambda share: -sum(cost(length) for length in share.lengths))
    packed += [Share((), (), 0)] * (room - len(packed))
    return [tuple(packed[m * num_replicas : (m + 1) * num_replicas]) for m in range(num_microbatches)]


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
