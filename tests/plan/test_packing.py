"""Packing: every sample whole in one sequence, none over its capacity, nearly nothing left empty."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.batch import Item, Placeholder, Sample
from hetsched.errors import DataError
from hetsched.layout.packing import loss_mask, pack, pack_samples, placeholder_mask, share_within, shift_labels
from hetsched.layout.shares import Share, share_samples

CAPACITY = 32_768


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[int]:
    """The rule as written in a textbook, in quadratic time."""
    room: list[int] = []
    sequence_of = [0] * len(lengths)
    for sample in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(left, sequence) for sequence, left in enumerate(room) if left >= lengths[sample]]
        if not fits:
            room.append(capacity)
            fits = [(capacity, len(room) - 1)]
        sequence_of[sample] = min(fits)[1]
        room[min(fits)[1]] -= lengths[sample]
    return sequence_of


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(30, 50))
def test_packing_is_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    assert pack(lengths, capacity=capacity).tolist() == best_fit_decreasing(lengths, capacity)


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(30, 50))
def test_in_order_a_new_sequence_begins_only_where_the_next_sample_does_not_fit(lengths: list[int], cap: int) -> None:
    sequence_of = pack(lengths, capacity=cap, keep_order=True).tolist()
    assert sequence_of == sorted(sequence_of)
    filled = [sum(n for n, s in zip(lengths, sequence_of, strict=True) if s == k) for k in range(len(lengths) + 1)]
    assert max(filled) <= cap
    for place in range(1, len(lengths)):
        before, here = sequence_of[place - 1 : place + 1]
        so_far = sum(n for n, s in zip(lengths[:place], sequence_of, strict=False) if s == before)
        assert (here == before) == (so_far + lengths[place] <= cap)


def log_normal_lengths(count: int) -> np.ndarray:
    lengths = np.random.default_rng(0).lognormal(np.log(800), 1.0, count).astype(np.int64)
    return np.clip(lengths, 1, CAPACITY)


def test_a_hundred_thousand_samples_fill_99_percent_within_a_second() -> None:
    lengths = log_normal_lengths(100_000)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        sequence_of = pack(lengths, capacity=CAPACITY)
        seconds.append(time.process_time() - start)
    filled = np.bincount(sequence_of, weights=lengths)
    assert filled.max() <= CAPACITY
    assert lengths.sum() / (len(filled) * CAPACITY) >= 0.99
    assert min(seconds) <= 1.0


def sample(index: int, num_tokens: int, *runs: tuple[int, int]) -> Sample:
    """A sample with items of (start, rows)."""
    items = tuple(Placeholder(Item("vision", start, rows * 4, rows), start) for start, rows in runs)
    return Sample(index, num_tokens, num_tokens, items)


def test_samples_keep_their_order_within_a_sequence_and_none_is_lost() -> None:
    samples = [sample(i, n) for i, n in enumerate([2, 7, 5, 3, 1])]
    shares = pack_samples(samples, capacity=10)
    assert [[m.index for m in share.members if isinstance(m, Sample)] for share in shares] == [[1, 3], [0, 2, 4]]
    assert [share.cu_seqlens for share in shares] == [(0, 7, 10), (0, 2, 7, 8)]
    assert pack_samples([], capacity=10) == []


@pytest.mark.parametrize("keep_order", [False, True])
def test_a_sample_longer_than_a_sequence_is_a_data_error_that_names_it(keep_order: bool) -> None:
    samples = [sample(40, 3), sample(41, 11), sample(42, 12)]
    said = "sample 41 has 11 tokens, but a packed sequence holds 10; set capacity to 12 or more"
    with pytest.raises(DataError, match=said):
        pack_samples(samples, capacity=10, keep_order=keep_order)
    with pytest.raises(DataError, match=r"sample 1 has 11 tokens.*; set capacity to 12 or more"):
        pack([3, 11, 12], capacity=10, keep_order=keep_order)


def test_the_loss_is_of_text_tokens_behind_a_position_of_the_same_sample() -> None:
    [share] = pack_samples([sample(0, 5, (1, 2)), sample(1, 1), sample(2, 3, (0, 1))], capacity=9)
    assert placeholder_mask(share).astype(int).tolist() == [0, 1, 1, 0, 0, 0, 1, 0, 0]
    assert loss_mask(share).astype(int).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0]


def test_labels_are_shifted_within_samples() -> None:
    [share] = pack_samples([sample(0, 3), sample(1, 2)], capacity=5)
    ids = np.array([10, 11, 12, 20, 21])
    assert shift_labels(ids, loss_mask(share)).tolist() == [11, 12, -100, 21, -100]


SHAPE = {"num_microbatches": 3, "num_replicas": 2, "cost": lambda n: n * n}


def members_of(shares: Sequence[tuple[Share, ...]]) -> list[Sample | Item]:
    return [member for replicas in shares for share in replicas for member in share.members]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 90))
def test_within_a_capacity_no_sequence_is_overfull_and_no_sample_lost(lengths: list[int], capacity: int) -> None:
    samples = [Sample(i, n, 1) for i, n in enumerate(lengths)]
    if len(pack_samples(samples, capacity=capacity)) > 6:
        with pytest.raises(DataError, match=f"packed sequences of {capacity}, but a step has 6"):
            share_within(samples, capacity=capacity, **SHAPE)
        return
    shares = share_within(samples, capacity=capacity, **SHAPE)
    assert [len(replicas) for replicas in shares] == [2, 2, 2]
    assert all(share.num_tokens <= capacity for replicas in shares for share in replicas)
    assert sorted(members_of(shares), key=lambda s: s.index) == samples


def test_work_is_shared_evenly_where_the_capacity_allows_it_and_packed_tightly_where_not() -> None:
    samples = [Sample(i, n, 1) for i, n in enumerate([30, *[7] * 10])]
    even = share_samples(samples, **SHAPE)
    assert max(share.num_tokens for replicas in even for share in replicas) == 30
    assert share_within(samples, capacity=30, **SHAPE) == even
    crowded = [Sample(i, n, 1) for i, n in enumerate([20, 20, 20, 20, 20, 20, 10, 10, 10, 10, 9, 11])]
    tight = share_within(crowded, capacity=31, **SHAPE)
    assert max(share.num_tokens for replicas in tight for share in replicas) <= 31
    assert len(members_of(tight)) == 12


def test_a_sample_longer_than_the_capacity_is_named() -> None:
    samples = [Sample(4, 9, 1), Sample(7, 40, 1)]
    with pytest.raises(
        DataError, match="sample 7 has 40 tokens, but a packed sequence holds 39; set capacity to 40 or"
    ):
        share_within(samples, capacity=39, **SHAPE)
