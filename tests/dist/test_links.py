"""Links: every wire has one, and no rank of a link both sends and receives on it."""

from __future__ import annotations

from itertools import product

import pytest

from hetsched.graph import make_topology
from hetsched.runtime.channels import Channels
from hetsched.runtime.exchange import Wire
from hetsched.runtime.transport.links import Link, is_within_host, make_links
from tests.dist.plans import make_plan


def all_wires(sources: range, destinations: range, *, tag: int = 0) -> list[Wire]:
    return [Wire(tag, s, d, "") for s, d in product(sources, destinations) if s != d]


def is_one_way(link: Link) -> bool:
    return not {wire.source for wire in link.wires} & {wire.destination for wire in link.wires}


@pytest.mark.parametrize("num_ranks", range(2, 18))
def test_within_a_lane_each_rank_of_a_link_only_sends_or_only_receives(num_ranks: int) -> None:
    wires = all_wires(range(num_ranks), range(num_ranks))
    links = make_links(wires, [range(num_ranks)])
    assert sorted((w.source, w.destination) for link in links for w in link.wires) == [
        (w.source, w.destination) for w in wires
    ]
    assert all(is_one_way(link) for link in links)
    assert len(links) == 2 * (num_ranks - 1).bit_length()


def test_one_link_for_all_wires_of_a_lane_would_not_be_one_way() -> None:
    assert not is_one_way(Link(tuple(all_wires(range(3), range(3)))))


def test_wires_between_two_lanes_are_one_link_a_channel() -> None:
    wires = (
        all_wires(range(2), range(2, 4)) + all_wires(range(2), range(4, 6)) + all_wires(range(2, 4), range(2), tag=1)
    )
    links = make_links(wires, [(0, 1), (2, 3), (4, 5)])
    assert [link.ranks for link in links] == [(0, 1, 2, 3), (0, 1, 4, 5), (0, 1, 2, 3)]


def test_a_link_is_within_a_host_or_between_hosts() -> None:
    hosts = "abbaabab"
    for wires, lanes in (
        (all_wires(range(8), range(8)), [range(8)]),
        (all_wires(range(4), range(4, 8)), [range(4), range(4, 8)]),
    ):
        links = make_links(wires, lanes, hosts=hosts)
        assert sorted((w.source, w.destination) for of in links for w in of.wires) == [
            (w.source, w.destination) for w in wires
        ]
        assert all(is_one_way(link) for link in links)
        for link in links:
            assert len({is_within_host(wire, hosts) for wire in link.wires}) == 1
        assert len(make_links(wires, lanes)) < len(links) <= 2 * len(make_links(wires, lanes))


def test_an_encoder_on_all_ranks_needs_few_links_where_wires_are_many() -> None:
    """Eight lanes of four ranks, the LLM's first stage on the first lane."""
    plan = make_plan(
        vision="first_rank = 0\nlayout.dp = 8", llm="first_rank = 0\nlayout = { dp = 4, pp = 2 }", world_size=8
    )
    _, lanes = make_topology(plan)
    wires = Channels(plan).wires
    links = make_links(wires, lanes)
    of_rank_0 = [link for link in links if 0 in link.ranks]
    # The boundary within the lane, 2 x 2, and from the other, and the next stage; each way.
    assert len(of_rank_0) == 2 * (4 + 1 + 1)
    assert len([wire for wire in wires if 0 in (wire.source, wire.destination)]) == 2 * (3 + 3 + 4 + 1)
    assert all(is_one_way(link) for link in links)
