"""Samples and items go to replicas once each, nearly evenly; their rows are laid out one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.batch import Item, Placeholder, Sample
from hetsched.layout.shares import Share, items_of, share_items, share_samples
from tests.plan.batches import batches, item_of

Shares = Sequence[tuple[Share, ...]]


def square(num_tokens: int) -> int:
    return num_tokens * num_tokens


def members(shares: Shares) -> list[Sample | Item]:
    return [member for replicas in shares for share in replicas for member in share.members]


def check_samples(samples: Sequence[Sample], shares: Shares, *, num_microbatches: int, num_replicas: int) -> None:
    """Every sample once, and no share that could give its shortest sample to a lighter one."""
    assert [len(replicas) for replicas in shares] == [num_replicas] * num_microbatches
    assert Counter(members(shares)) == Counter(samples)
    every = [share for replicas in shares for share in replicas]
    for share in every:
        assert share.lengths == tuple(sample.num_tokens for sample in share.members)
        assert share.num_rows == sum(share.lengths)
    loads = [sum(map(square, share.lengths)) for share in every]
    for share, load in zip(every, loads, strict=True):
        if share.members:
            assert load - square(min(share.lengths)) <= min(loads)


@given(batches(max_samples=12), st.integers(1, 3), st.integers(1, 3))
def test_every_sample_is_in_one_share_and_shares_are_even(
    samples: tuple[Sample, ...], num_microbatches: int, num_replicas: int
) -> None:
    shares = share_samples(samples, num_microbatches=num_microbatches, num_replicas=num_replicas, cost=square)
    check_samples(samples, shares, num_microbatches=num_microbatches, num_replicas=num_replicas)


def share_of(*samples: Sample) -> Share:
    lengths = tuple(sample.num_tokens for sample in samples)
    return Share(samples, lengths, sum(lengths))


ONE, TWO, THREE = (Sample(index, num_tokens, 1) for index, num_tokens in enumerate((5, 4, 3)))


@pytest.mark.parametrize(
    "wrong",
    [
        [(share_of(ONE),), (share_of(TWO),)],
        [(share_of(ONE, THREE),), (share_of(TWO, THREE),)],
        [(share_of(ONE, TWO, THREE),), (share_of(),)],
        [(share_of(ONE), share_of(TWO, THREE))],
        [(Share((ONE,), (4,), 4),), (share_of(TWO, THREE),)],
    ],
)
def test_wrong_shares_of_samples_fail_that_check(wrong: Shares) -> None:
    right = [(share_of(ONE),), (share_of(TWO, THREE),)]
    check_samples([ONE, TWO, THREE], right, num_microbatches=2, num_replicas=1)
    with pytest.raises(AssertionError):
        check_samples([ONE, TWO, THREE], wrong, num_microbatches=2, num_replicas=1)


def check_items(consumers: Shares, shares: Shares, *, num_replicas: int, allowed: Sequence[int]) -> None:
    """An item once in each microbatch that uses it, on a replica that may have it; loads even over the step."""
    loads = dict.fromkeys(allowed, 0)
    for using, replicas in zip(consumers, shares, strict=True):
        assert len(replicas) == num_replicas
        used = {p.item for share in using for sample in share.members for p in sample.placeholders}
        used = {item for item in used if item.module == "vision"}
        assert Counter(members([replicas])) == Counter(used)
        for replica, share in enumerate(replicas):
            assert replica in allowed or not share.members
            assert share.lengths == tuple(item.num_inputs for item in share.members)
            assert share.num_rows == sum(item.num_rows for item in share.members)
            if share.members:
                loads[replica] += sum(map(square, share.lengths))
        largest = max((square(item.num_inputs) for item in used), default=0)
        heaviest = max((loads[replica] for replica in allowed if replicas[replica].members), default=0)
        assert heaviest <= min(loads.values()) + largest


@given(batches(modules=("vision", "audio")), st.integers(1, 3), st.integers(1, 2), st.data())
def test_every_item_is_in_one_share_of_each_microbatch_that_uses_it(
    samples: tuple[Sample, ...], num_microbatches: int, num_consumers: int, data: st.DataObject
) -> None:
    consumers = share_samples(samples, num_microbatches=num_microbatches, num_replicas=num_consumers, cost=square)
    num_replicas = data.draw(st.integers(1, 4))
    allowed = sorted(data.draw(st.sets(st.integers(0, num_replicas - 1), min_size=1)))
    groups = [[(items, allowed)] for items in items_of(consumers, "vision")]
    shares = share_items(groups, num_replicas=num_replicas, cost=square)
    check_items(consumers, shares, num_replicas=num_replicas, allowed=allowed)


def part(*keys: int) -> Share:
    items = tuple(item_of(key) for key in keys)
    return Share(items, tuple(item.num_inputs for item in items), sum(item.num_rows for item in items))


TWICE = Sample(0, 9, 1, (Placeholder(item_of(0), 0), Placeholder(item_of(1), 2), Placeholder(item_of(0), 5)))
AGAIN = Sample(1, 9, 1, (Placeholder(item_of(0), 3),))


@pytest.mark.parametrize(
    "wrong",
    [
        [
            (part(1), part(), part(0, 0)),
            (part(), part(), part(0)),
        ],
        [
            (part(1), part(), part(0)),
            (part(), part(), part()),
        ],
        [
            (part(1), part(0), part()),
            (part(), part(), part(0)),
        ],
        [
            (part(0, 1), part(), part()),
            (part(0), part(), part()),
        ],
    ],
)
def test_wrong_shares_of_items_fail_that_check(wrong: Shares) -> None:
    consumers = [(share_of(TWICE),), (share_of(AGAIN),)]
    right = share_items([[(items, [0, 2])] for items in items_of(consumers, "vision")], num_replicas=3, cost=square)
    assert right == [
        (part(1), part(), part(0)),
        (part(), part(), part(0)),
    ]
    check_items(consumers, right, num_replicas=3, allowed=[0, 2])
    with pytest.raises(AssertionError):
        check_items(consumers, wrong, num_replicas=3, allowed=[0, 2])


def test_a_share_packs_its_sequences_and_knows_where_items_enter() -> None:
    share = share_of(AGAIN, Sample(2, 4, 1), TWICE)
    assert share.cu_seqlens == (0, 9, 13, 22) and share.num_tokens == 22
    assert [(row, p.item.key) for row, p in share.placeholders("vision")] == [(3, 0), (13, 0), (15, 1), (18, 0)]
    assert list(share.placeholders("audio")) == []
    assert Share((), (), 0).cu_seqlens == (0,)


def test_groups_of_items_go_to_the_replicas_that_may_have_them() -> None:
    items = [item_of(key) for key in range(5)]
    (shares,) = share_items([[(items[:2], [1]), (items[2:], [0, 2])]], num_replicas=3, cost=square)
    assert set(shares[1].members) == set(items[:2])
    assert set(shares[0].members) | set(shares[2].members) == set(items[2:])
    assert shares[0].members and shares[2].members
