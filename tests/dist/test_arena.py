"""The peer transport's arena: no two wires share memory, and messages' sizes are known before a step."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import pytest

from hetsched.graph import make_topology
from hetsched.layout.routes import segments_of
from hetsched.plan import Plan
from hetsched.runtime.exchange import Wire
from hetsched.runtime.sizes import largest_messages
from hetsched.runtime.transport.links import Link, make_links
from hetsched.runtime.transport.peer import NUM_SLOTS, PART_BYTES, cut, place_wires, turn_of
from hetsched.runtime.work import Channels
from hetsched.stepplan import plan_step
from tests.dist.plans import make_plan
from tests.dist.ragged import RaggedSource

PLAN = make_plan(
    vision="first_rank = 0\nlayout.dp = 4", llm="first_rank = 0\nlayout = { dp = 2, pp = 2 }", world_size=4
)
CUT = make_plan(
    vision="first_rank = 0\nlayout.dp = 4",
    llm="first_rank = 0\nlayout = { cp = 2, pp = 2 }\nshortest_cut = 1",
    world_size=4,
)


def test_no_byte_of_an_arena_belongs_to_two_wires() -> None:
    wires = [Wire(tag, s, d, "") for tag in range(3) for s, d in permutations(range(4), 2)]
    slot_bytes = {0: 0, 1: 128, 2: 1280}
    places, num_bytes = place_wires(wires, slot_bytes)
    for rank in range(4):
        spans = [(p.arrived, 4) for w, p in places.items() if w.destination == rank]
        spans += [(p.taken, 4) for w, p in places.items() if w.source == rank]
        spans += [(p.slots, NUM_SLOTS * slot_bytes[w.tag]) for w, p in places.items() if w.destination == rank]
        spans.sort()
        assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))
        assert all(start % 128 == 0 and start + size <= num_bytes for start, size in spans)


@pytest.mark.parametrize("plan", [PLAN, CUT], ids=["dp 2", "cp 2"])
def test_the_largest_messages_are_those_of_the_routes_and_shares(plan: Plan) -> None:
    channels, source = Channels(plan), RaggedSource(0, items="many")
    step = plan_step(plan, [source.describe(i) for i in range(17)])
    largest = largest_messages(plan, step, channels)
    seen: dict[int, int] = {}
    for (edge, _), crossing in step.crossings.items():
        for is_forward, array in ((True, crossing.forward), (False, crossing.backward)):
            channel, route = channels.of(edge, 0, is_forward=is_forward), segments_of(array)
            for ends in {(s.src_rank, s.dst_rank) for s in route if s.src_rank != s.dst_rank}:
                rows = sum(s.num_rows for s in route if (s.src_rank, s.dst_rank) == ends)
                num_bytes = rows * channel.hidden * channel.dtype.itemsize
                seen[channel.tag] = max(seen.get(channel.tag, 0), num_bytes)
    assert seen
    assert {tag: largest[tag] for tag in seen} == seen
    tokens = max(
        len(held.positions(cp))
        for (module, _), replicas in step.shares.items()
        for held in replicas
        for cp in range(plan.modules[module].layout.cp)
        if module == "llm"
    )
    pipeline = channels.of("llm", 0, is_forward=False)
    assert largest[pipeline.tag] == tokens * pipeline.hidden * pipeline.dtype.itemsize


def test_every_wire_of_a_plan_has_a_place_and_a_link() -> None:
    wires = Channels(PLAN).wires
    _, lanes = make_topology(PLAN)
    places, _ = place_wires(wires, {wire.tag: 128 for wire in wires})
    assert set(places) == {wire for link in make_links(wires, lanes) for wire in link.wires}


@pytest.mark.parametrize("row_bytes", [8192, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4095, 4096, 4097, 32768, 40001])
def test_parts_are_as_few_as_their_size_allows_and_equal_to_a_row(num_rows: int, row_bytes: int) -> None:
    ends = cut(num_rows, row_bytes)
    sizes = [end - start for start, end in pairwise([0, *ends])]
    assert ends[-1] == num_rows
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    # Equal parts may exceed the size by less than a row; a part of one row may be as large as it is.
    assert (max(sizes) - 1) * row_bytes < PART_BYTES
    assert len(ends) == min(num_rows, -(-num_rows * row_bytes // PART_BYTES))


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
@pytest.mark.parametrize("destinations", [1, 2, 3, 4])
def test_in_one_turn_no_rank_has_two_wires(sources: int, destinations: int) -> None:
    wires = [Wire(0, s, 10 + d, "") for s, d in product(range(sources), range(destinations))]
    link = Link(tuple(wires))
    turns = {wire: turn_of(wire, link) for wire in wires}
    for one, other in permutations(wires, 2):
        if turns[one] == turns[other]:
            assert one.source != other.source
            assert one.destination != other.destination
    assert len(set(turns.values())) == max(sources, destinations)
