"""Rooms: none has two microbatches at once or is given back while it is read; nobody waits for what comes later."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from hetsched.lower.rooms import Arrival, LaneRooms, Room, Rooms
from hetsched.plan import Plan
from hetsched.schedule.action import Action, Kind, parse_action
from hetsched.stepprogram import step_program
from tests.dist.plans import make_plan

VISION = "first_rank = 0\nlayout.dp = 4"
PLANS = {
    name: make_plan(
        vision=VISION,
        llm=f"first_rank = 0\nlayout = {{ pp = {pp}, vpp = {vpp} }}",
        schedule=schedule,
        world_size=4,
        microbatches=8,
    )
    for name, pp, vpp, schedule in (
        ("gpipe", 4, 1, 'pipeline = "gpipe"'),
        ("1f1b", 4, 1, 'pipeline = "1f1b"'),
        ("interleaved", 2, 2, 'pipeline = "interleaved"'),
        ("zb-h1", 4, 1, 'pipeline = "zb-h1"'),
        ("zb-v", 2, 2, 'pipeline = "zb-v"'),
        ("dualpipev", 2, 2, 'pipeline = "dualpipev"'),
        ("stage0", 4, 1, 'encoder = "stage0"'),
        ("window", 4, 1, 'encoder = "window"\nwindow = 2'),
        ("fill", 4, 1, 'encoder = "fill"'),
    )
}


def reads(actions: Sequence[Action], arrival: Arrival) -> Iterator[int]:
    """Where a lane's list may read what arrived: in the stage's forward and what follows from it, or its backward."""
    is_gradient = arrival.kind is Kind.RECV_B
    module = arrival.edge.split("->")[0 if is_gradient else -1]
    kinds = {Kind.B, Kind.I} if is_gradient else {Kind.F, Kind.B, Kind.I, Kind.W, Kind.SEND_F, Kind.SEND_B}
    for place, action in enumerate(actions):
        for part in action.flat():
            ends = part.module.split("->")
            owner = ends[0] if part.kind is Kind.SEND_F else ends[-1]
            same = (owner, part.stage) == (module, arrival.stage)
            if same and part.kind in kinds and arrival.microbatch in part.microbatches:
                yield place


def check(actions: Sequence[Action], lane: LaneRooms) -> int:
    """Go through a lane's list as its ranks do; how many rows arrive on it."""
    in_use: dict[tuple[str, int, Kind, int], Arrival] = {}
    given_back: dict[tuple[str, int, Kind], int] = {}
    last_in: dict[tuple[str, int, Kind, int], int] = {}
    arrived = 0
    for place, action in enumerate(actions):
        for m in action.microbatches if action.kind in (Kind.RECV_F, Kind.RECV_B) else ():
            arrival = Arrival(action.module, action.stage, action.kind, m)
            rooms = lane.rooms[arrival[:3]]
            key = (*arrival[:3], rooms.of[m].slot)
            assert key not in in_use, f"{arrival} and {in_use[key]} have one slot"
            assert 0 <= rooms.of[m].slot < rooms.num_slots
            assert rooms.of[m].after == last_in.get(key, 0) <= given_back.get(arrival[:3], 0)
            in_use[key], arrived = arrival, arrived + 1
            assert max(reads(actions, arrival)) in {at for at, ends in lane.ends.items() if arrival in ends}
        for arrival in lane.ends.get(place, ()):
            rooms = lane.rooms[arrival[:3]]
            key = (*arrival[:3], rooms.of[arrival.microbatch].slot)
            assert in_use.pop(key) == arrival
            given_back[arrival[:3]] = given_back.get(arrival[:3], 0) + 1
            last_in[key] = rooms.returned[arrival.microbatch]
            assert last_in[key] == given_back[arrival[:3]]
    assert not in_use, "not given back"
    return arrived


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_rooms_of_a_program_are_free_when_they_are_taken_and_kept_while_they_are_read(plan: Plan) -> None:
    lanes = step_program(plan).lanes
    assert sum(check(actions, LaneRooms.of(actions)) for actions in lanes) > 0


def test_a_slot_for_each_microbatch_in_flight_and_no_more() -> None:
    lanes = step_program(PLANS["1f1b"]).lanes
    slots = [LaneRooms.of(lane).rooms["llm", stage, Kind.RECV_F].num_slots for stage, lane in enumerate(lanes) if stage]
    assert slots == [3, 2, 1]
    last = LaneRooms.of(step_program(PLANS["gpipe"]).lanes[3])
    assert last.rooms["llm", 3, Kind.RECV_F].num_slots == 8


def test_what_a_deferred_weight_gradient_reads_is_kept_until_then() -> None:
    texts = [
        "llm:1RECV_F0",
        "llm:1F0",
        "llm:1I0",
        "llm:1SEND_B0",
        "llm:1RECV_F1",
        "llm:1F1",
        "llm:1W0",
        "llm:1I1",
        "llm:1W1",
    ]
    lane = LaneRooms.of([parse_action(text) for text in texts])
    assert {place: [a.microbatch for a in of] for place, of in lane.ends.items()} == {6: [0], 8: [1]}
    assert lane.rooms["llm", 1, Kind.RECV_F].of == {0: Room(0, 0), 1: Room(1, 0)}


def test_a_gradient_is_given_back_by_the_backward_that_takes_it() -> None:
    texts = ["llm:0F0", "llm:0RECV_B0", "llm:0B0", "vision->llm:0SEND_B0", "llm:0RECV_B1", "llm:0B1"]
    lane = LaneRooms.of([parse_action(text) for text in texts])
    assert sorted(lane.ends) == [2, 5]
    assert lane.rooms["llm", 0, Kind.RECV_B].of == {0: Room(0, 0), 1: Room(0, 1)}


@pytest.mark.parametrize("seed", range(50))
def test_rooms_in_any_order_are_shared_by_none_at_once(seed: int) -> None:
    draw, taken, events = random.Random(seed), [], []
    for m in range(20):
        events.append((m, False))
        taken.append(m)
        while taken and draw.random() < 0.5:
            events.append((taken.pop(draw.randrange(len(taken))), True))
    events += [(m, True) for m in taken]
    rooms, used, most, count = Rooms.by(events), {}, 0, 0
    for m, is_end in events:
        slot, after = rooms.of[m]
        if is_end:
            count += 1
            assert used.pop(slot) == m and rooms.returned[m] == count
        else:
            assert slot not in used and after <= count
            used[slot] = m
            most = max(most, len(used))
    assert rooms.num_slots == most
    awaited = {room.after for room in rooms.of.values()} | {20}
    assert rooms.awaited == awaited - {0}
