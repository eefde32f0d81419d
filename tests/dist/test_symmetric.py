"""Ranks agree on with whom they share memory: a rank that shares it with others makes all of a group do without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.parallel import pull, symmetric
from hetsched.runtime.transport import peer
from tests.dist.pool import Pool

Sets = Sequence[tuple[int, ...]]


def looks(sets: Sets) -> list[str | None]:
    """Why this rank's groups, one after the other, cannot share memory; "not in it" for those of others."""
    symmetric._reserved.clear()
    pull._why_not_share.cache_clear()
    found: list[str | None] = []
    for ranks in sets:
        group = dist.new_group(list(ranks))
        found.append(pull._why_not_share(group) if dist.get_rank() in ranks else "not in it")
    return found


def test_a_group_that_overlaps_one_that_shares_memory_does_without_on_all_of_its_ranks(ranks: Pool) -> None:
    for rank, (first, whole, again) in enumerate(ranks.run(looks, [(0, 1), (0, 1, 2), (0, 1)], num_ranks=3)):
        assert first == again == (None if rank < 2 else "not in it")
        assert whole is not None and "share memory with others" in whole


def test_groups_beside_each_other_share_memory(ranks: Pool) -> None:
    for one, other in ranks.run(looks, [(0, 1), (2, 3)], num_ranks=4):
        assert {one, other} == {None, "not in it"}


def makes_carrier(first: tuple[int, ...]) -> tuple[str, list[str | None]]:
    """What the peer transport of all ranks says after a group has looked, and what the group and all say after it."""
    before = looks([first])
    try:
        peer._reserve(peer.Neighbors.of(range(dist.get_world_size())))
        said = "reserved"
    except JobError as error:
        said = str(error)
    pull._why_not_share.cache_clear()
    everyone = tuple(range(dist.get_world_size()))
    after = []
    for ranks in (first, everyone):
        group = dist.new_group(list(ranks))
        after.append(pull._why_not_share(group) if dist.get_rank() in ranks else "not in it")
    return said, [*before, *after]


def test_the_peer_transport_is_refused_on_every_rank_where_smaller_groups_share_memory(ranks: Pool) -> None:
    for said, _ in ranks.run(makes_carrier, (0, 1), num_ranks=3):
        assert "share it with one set of ranks only" in said


def test_under_the_peer_transport_only_all_ranks_together_share_memory(ranks: Pool) -> None:
    for said, (_, first, everyone) in ranks.run(makes_carrier, (0, 1, 2), num_ranks=3):
        assert said == "reserved" and first is None and everyone is None


def after_the_carrier() -> list[str | None]:
    symmetric._reserved.clear()
    pull._why_not_share.cache_clear()
    peer._reserve(peer.Neighbors.of(range(dist.get_world_size())))
    return [
        pull._why_not_share(group) if dist.get_rank() in of else "not in it"
        for of in ((0, 1), (0, 1, 2))
        for group in [dist.new_group(list(of))]
    ]


def test_a_smaller_group_does_without_once_the_peer_transport_is_there(ranks: Pool) -> None:
    for rank, (smaller, everyone) in enumerate(ranks.run(after_the_carrier, num_ranks=3)):
        assert everyone is None
        assert smaller == "not in it" if rank == 2 else smaller is not None


@pytest.fixture(autouse=True)
def forgotten(ranks: Pool) -> Iterator[None]:
    """The pool's processes stay: what they reserved must not."""
    yield
    ranks.run(forget, num_ranks=4)


def forget() -> None:
    symmetric._reserved.clear()
    pull._why_not_share.cache_clear()
