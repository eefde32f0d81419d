"""The peer transport's arena: nobody shares memory, and what arrives in a step fits what is made for it before."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import pytest
import torch

from hetsched.graph import make_topology
from hetsched.lower.rooms import Room, Rooms
from hetsched.plan import Plan
from hetsched.runtime.channels import Channels, key_of
from hetsched.runtime.exchange import Channel, Transfer, Wire
from hetsched.runtime.step_rooms import largest_rooms, step_rooms
from hetsched.runtime.transport.arena import Slots, place
from hetsched.runtime.transport.links import Link, make_links
from hetsched.runtime.transport.peer import turn_of
from hetsched.runtime.work import RankStep
from hetsched.schedule.action import Kind
from hetsched.stepplan import plan_step
from hetsched.stepprogram import step_program
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


def test_no_byte_of_an_arena_belongs_to_two() -> None:
    wires = [Wire(tag, s, d, "") for tag in range(3) for s, d in permutations(range(4), 2)]
    slot_bytes = {0: 0, 1: 128, 2: 1280}
    num_slots = {(tag, rank): (tag + rank) % 4 for tag in range(3) for rank in range(4)}
    places = place(wires, num_slots, slot_bytes)
    for rank in range(4):
        spans = [(at, 4) for wire, at in places.arrived.items() if wire.destination == rank]
        spans += [(at, 4) for wire, at in places.returned.items() if wire.source == rank]
        spans += [(at, num_slots[of] * slot_bytes[of[0]]) for of, at in places.slots.items() if of[1] == rank]
        assert len(spans) == 3 * (3 + 3 + 1)
        spans.sort()
        assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))
        assert all(start % 128 == 0 and start + size <= places.num_bytes for start, size in spans)


@pytest.mark.parametrize("plan", [PLAN, CUT], ids=["dp 2", "cp 2"])
def test_what_arrives_on_a_rank_fits_its_room(plan: Plan) -> None:
    channels, source = Channels(plan), RaggedSource(0, items="many")
    step = plan_step(plan, [source.describe(i) for i in range(17)])
    largest = largest_rooms(plan, step, channels)
    seen: dict[int, int] = {}
    for rank in range(plan.world_size):
        work = RankStep(plan, step, rank=rank, channels=channels, device=torch.device("cpu"))
        for move in (*dict(work._over_boundaries()).values(), *dict(work._between_stages()).values()):
            tag = move.transfer.channel.tag
            if move.share.receives:
                seen[tag] = max(seen.get(tag, 0), move.share.room_rows * move.transfer.channel.row_bytes)
    assert len(seen) > 3
    assert all(largest[tag] >= num_bytes for tag, num_bytes in seen.items())
    # Rows of one rank that are no message take room as well, where they lie between those of others.
    assert any(largest[tag] == num_bytes for tag, num_bytes in seen.items())


def test_a_rooms_rows_are_as_many_as_are_asked_for_and_lie_at_its_start() -> None:
    channel = Channel(0, 4, torch.float32, "edge")
    memory = [torch.arange(32, dtype=torch.float32).view(torch.uint8), torch.zeros(128, dtype=torch.uint8)]
    slots = Slots(memory, Rooms(2, {0: Room(1, 0), 1: Room(0, 0), 2: Room(0, 1)}))
    for num_rows in (8, 3, 0, 3):
        rows = slots.rows(Transfer(channel, 1), num_rows)
        assert rows.tolist() == torch.arange(4.0 * num_rows).view(num_rows, 4).tolist()
    slots.rows(Transfer(channel, 2), 8)[5] = -1
    assert slots.rows(Transfer(channel, 1), 8)[5].eq(-1).all(), "the same slot"
    assert not slots.rows(Transfer(channel, 0), 8).any(), "another one"


def test_every_wire_of_a_plan_has_places_and_a_link_and_every_receive_a_room() -> None:
    channels = Channels(PLAN)
    _, lanes = make_topology(PLAN)
    program = step_program(PLAN)
    rooms = step_rooms(program, lanes, channels)
    places = place(channels.wires, {of: r.num_slots for of, r in rooms.by_rank.items()}, {})
    assert set(places.arrived) == {wire for link in make_links(channels.wires, lanes) for wire in link.wires}
    inboxes = {(wire.tag, wire.destination) for wire in channels.wires}
    assert set(rooms.by_rank) <= inboxes == set(places.slots)
    given_back = sorted(str(transfer) for lane in rooms.ends for of in lane.values() for transfer in of)
    received = [a for lane in program.lanes for a in lane if a.kind in (Kind.RECV_F, Kind.RECV_B)]
    assert given_back == sorted(
        str(Transfer(channels.of(key_of(a.module, a.stage, a.kind)), m)) for a in received for m in a.microbatches
    )


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
