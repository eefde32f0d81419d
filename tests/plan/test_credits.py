"""Within the limit of microbatches in flight whatever the timing: programs run in random orders of their lanes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from hetsched.check.validate import check
from hetsched.schedule.action import Kind
from hetsched.schedule.registry import PIPELINES
from hetsched.sim.credits import Credit, Signals, signals_of, state_credits
from hetsched.sim.timeline import Timeline
from tests.plan.fillable import even, step

NUM_ORDERS = 20


def most_held(timeline: Timeline, signals: Signals, *, recomputed: frozenset[int], seed: int) -> int:
    """The most microbatches of ``vision`` that are held as lanes take turns at random, some far ahead of others.

    Raises AssertionError where no lane can go on.
    """
    program, random = timeline.program, Random(seed)
    flat = check(program)
    sends: dict[int, list[int]] = {}
    for _, _, send, receive in flat.compiled.messages:
        sends.setdefault(receive, []).append(send)
    weights = [random.choice((1, 1, 20)) for _ in program.lanes]
    places, done = [0] * len(program.lanes), set[int]()
    given: Counter[tuple[int, int]] = Counter()
    left = Counter(
        m for lane in program.lanes for a in lane if a.module == "vision" and a.kind is Kind.B for m in a.microbatches
    )
    held, most = set[int](), 0

    def can_run(lane: int) -> bool:
        if places[lane] == len(program.lanes[lane]):
            return False
        action = program.lanes[lane][places[lane]]
        if not done.issuperset(sends.get(flat.lane_begin[lane] + places[lane], ())):
            return False
        awaited = signals.awaited.get(("vision", action.first or 0, lane), {}) if action.kind is Kind.F else {}
        return action.module != "vision" or all(given[other, lane] >= count for other, count in awaited.items())

    while any(places[lane] < len(actions) for lane, actions in enumerate(program.lanes)):
        able = [lane for lane in range(len(program.lanes)) if can_run(lane)]
        assert able, "a deadlock"
        (lane,) = random.choices(able, [weights[lane] for lane in able])
        action = program.lanes[lane][places[lane]]
        done.add(flat.lane_begin[lane] + places[lane])
        places[lane] += 1
        if action.module != "vision" or action.kind not in (Kind.F, Kind.B):
            continue
        assert action.first is not None
        if action.kind is Kind.F:
            held |= {action.first} - recomputed
        else:
            left[action.first] -= 1
            held -= {m for m in held if not left[m]}
            given.update((lane, opening) for opening in signals.given.get(("vision", action.first, lane), ()))
        most = max(most, len(held))
    return most


def all_orders(schedule: str, limit: int, *, num_items: int, with_signals: bool = True) -> list[int]:
    """The most that is held, of each of some random orders."""
    placed = step(schedule, 4, even(8, 3, 5, num_items=num_items)).run(
        in_flight=limit, budget=60, split_items=num_items > 1
    )
    again = placed.placement.recomputed.get("vision", frozenset())
    credits = state_credits(placed.timeline, "vision", in_flight=limit, recomputed=again)
    signals = signals_of(placed.timeline.program, credits) if with_signals else Signals()
    return [most_held(placed.timeline, signals, recomputed=again, seed=seed) for seed in range(NUM_ORDERS)]


@pytest.mark.parametrize("schedule", PIPELINES)
@pytest.mark.parametrize("num_items", [1, 4])
def test_no_order_of_the_lanes_holds_more_than_may_be(schedule: str, num_items: int) -> None:
    for limit in (1, 2, 3, 6):
        assert max(all_orders(schedule, limit, num_items=num_items)) <= limit


@pytest.mark.parametrize("num_items", [1, 4])
def test_without_signals_some_order_holds_more(num_items: int) -> None:
    assert max(all_orders("1f1b", 2, num_items=num_items, with_signals=False)) > 2


def test_a_microbatch_waits_for_the_earliest_that_has_closed() -> None:
    placed = step("1f1b", 2, even(4, 3, 5)).run(in_flight=1)
    credits = state_credits(placed.timeline, "vision", in_flight=1)
    assert [(c.closed, c.opened) for c in credits] == [(0, 1), (1, 2), (2, 3)]
    assert state_credits(placed.timeline, "vision", in_flight=4) == []


def test_signals_are_counted_in_the_order_in_which_a_lane_gives_them() -> None:
    program = step("1f1b", 2, even(4, 3, 5, num_items=2)).run("three_phase", split_items=True).timeline.program
    assert [a.first for a in program.lanes[1] if a.module == "vision" and a.kind is Kind.B] == [0, 1, 2, 3]
    # Microbatch 2 takes the place of 1, and 3 that of 0, which lane 1 gives first.
    credits = [Credit("vision", 1, (1,), 2, (0,)), Credit("vision", 0, (1,), 3, (0,))]
    signals = signals_of(program, credits)
    assert signals.awaited == {("vision", 2, 0): {1: 2}, ("vision", 3, 0): {1: 1}}
    assert signals.given == {("vision", 0, 1): (0,), ("vision", 1, 1): (0,)}
