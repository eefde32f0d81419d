"""Within the limit of microbatches in flight whatever the timing: programs run in random orders of their lanes."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any
from unittest import mock

import pytest

from hetsched.check.validate import check
from hetsched.schedule import encoder
from hetsched.schedule.action import Kind
from hetsched.schedule.encoder import ItemCost
from hetsched.schedule.encoder.credits import Credit, Signals, signals_of
from hetsched.schedule.encoder.fill import Filled, fill
from hetsched.schedule.registry import PIPELINES
from tests.plan.fillable import Placed, even, step
from tests.plan.literal import replicated

NUM_ORDERS = 20


def most_held(placed: Placed, signals: Signals, *, seed: int) -> int:
    """The most microbatches that an encoder holds as lanes take turns at random, some far ahead of others.

    Raises AssertionError where no lane can go on.
    """
    program, random = placed.timeline.program, Random(seed)
    flat = check(program)
    sends: dict[int, list[int]] = {}
    for _, _, send, receive in flat.compiled.messages:
        sends.setdefault(receive, []).append(send)
    weights = [random.choice((1, 1, 20)) for _ in program.lanes]
    places, done = [0] * len(program.lanes), set[int]()
    given: Counter[tuple[str, int, int]] = Counter()
    left = Counter((a.module, m) for lane in program.lanes for a in lane if a.kind is Kind.B for m in a.microbatches)
    held: dict[str, set[int]] = {name: set() for name in placed.in_flight}
    most = 0

    def can_run(lane: int) -> bool:
        if places[lane] == len(program.lanes[lane]):
            return False
        action = program.lanes[lane][places[lane]]
        if not done.issuperset(sends.get(flat.lane_begin[lane] + places[lane], ())):
            return False
        awaited = signals.awaited.get((action.module, action.first or 0, lane), {}) if action.kind is Kind.F else {}
        return all(given[action.module, other, lane] >= count for other, count in awaited.items())

    while any(places[lane] < len(actions) for lane, actions in enumerate(program.lanes)):
        able = [lane for lane in range(len(program.lanes)) if can_run(lane)]
        assert able, "a deadlock"
        (lane,) = random.choices(able, [weights[lane] for lane in able])
        action = program.lanes[lane][places[lane]]
        done.add(flat.lane_begin[lane] + places[lane])
        places[lane] += 1
        name, m = action.module, action.first
        if name not in held or action.kind not in (Kind.F, Kind.B):
            continue
        assert m is not None
        if action.kind is Kind.F:
            held[name] |= {m} - placed.placement.recomputed.get(name, frozenset())
        else:
            left[name, m] -= 1
            held[name] -= {m for m in held[name] if not left[name, m]}
            given.update((name, lane, opening) for opening in signals.given.get((name, m, lane), ()))
        most = max(most, *map(len, held.values()))
    return most


def all_orders(placed: Placed, *, with_signals: bool = True) -> list[int]:
    """The most that an encoder holds, of each of some random orders."""
    signals = signals_of(placed.timeline.program, placed.placement.credits) if with_signals else Signals()
    return [most_held(placed, signals, seed=seed) for seed in range(NUM_ORDERS)]


def limited(schedule: str, limit: int, *, num_items: int) -> Placed:
    """One encoder on all lanes."""
    return step(schedule, 4, even(8, 3, 5, num_items=num_items)).run(
        in_flight=limit, budget=60, split_items=num_items > 1
    )


@pytest.mark.parametrize("schedule", PIPELINES)
@pytest.mark.parametrize("num_items", [1, 4])
def test_no_order_of_the_lanes_holds_more_than_may_be(schedule: str, num_items: int) -> None:
    for limit in (1, 2, 3, 6):
        assert max(all_orders(limited(schedule, limit, num_items=num_items))) <= limit


@pytest.mark.parametrize("num_items", [1, 4])
def test_without_signals_some_order_holds_more(num_items: int) -> None:
    assert max(all_orders(limited("1f1b", 2, num_items=num_items), with_signals=False)) > 2


CIRCLES = (19, 340, 1124, 1353)
"""Steps in which lanes wait in a circle if the second encoder is placed without regard to the first one's credits."""


def two_encoders(seed: int) -> tuple[Placed, int]:
    """Two encoders on any lanes, with any items, and their limit."""
    random = Random(seed)
    num_lanes, num_microbatches, slow = random.randint(1, 4), random.randint(3, 7), random.choice([1, 1, 5])

    def ragged(scale: int) -> list[list[ItemCost]]:
        return [
            [
                ItemCost(t := random.randint(1, 9) * scale, random.choice([1, 2]) * t)
                for _ in range(random.randint(0, 3))
            ]
            for _ in range(num_microbatches)
        ]

    def lanes() -> list[int]:
        return sorted(random.sample(range(num_lanes + 2), random.randint(1, num_lanes + 1)))

    items = {"vision": ragged(1), "audio": ragged(slow)}
    schedule = random.choice(["1f1b", "gpipe", "zb-h1"])
    encoders = replicated(*lanes()), replicated(*lanes(), name="audio")
    limit, budget = random.randint(1, 3), random.choice([5, 60])
    options = dict(in_flight=limit, budget=budget, split_items=random.random() < 0.5, recompute=random.random() < 0.2)
    return step(schedule, num_lanes, items, encoders=encoders).run(**options), limit


@pytest.mark.parametrize("seed", [*range(15), *CIRCLES])
def test_no_order_holds_more_of_either_of_two_encoders(seed: int) -> None:
    """The second one's work may delay the first one's beyond what its own placement saw."""
    placed, limit = two_encoders(seed)
    assert max(all_orders(placed)) <= limit


@pytest.mark.parametrize("seed", CIRCLES)
def test_an_encoder_that_disregards_anothers_credits_is_seen(seed: int) -> None:
    def heedless(*args: Any, credits: tuple[Credit, ...]) -> Filled:
        return fill(*args)

    with mock.patch.object(encoder, "fill", heedless):
        placed, _ = two_encoders(seed)
    with pytest.raises(AssertionError, match="a deadlock"):
        all_orders(placed)


def test_a_microbatch_waits_for_the_earliest_that_has_closed() -> None:
    placed = step("1f1b", 2, even(4, 3, 5)).run(in_flight=1)
    assert [(c.closed, c.opened) for c in placed.placement.credits] == [(0, 1), (1, 2), (2, 3)]
    assert step("1f1b", 2, even(4, 3, 5)).run(in_flight=4).placement.credits == ()


def test_signals_are_counted_in_the_order_in_which_a_lane_gives_them() -> None:
    program = step("1f1b", 2, even(4, 3, 5, num_items=2)).run("three_phase", split_items=True).timeline.program
    assert [a.first for a in program.lanes[1] if a.module == "vision" and a.kind is Kind.B] == [0, 1, 2, 3]
    # Microbatch 2 takes the place of 1, and 3 that of 0, which lane 1 gives first.
    credits = [Credit("vision", 1, (1,), 2, (0,)), Credit("vision", 0, (1,), 3, (0,))]
    signals = signals_of(program, credits)
    assert signals.awaited == {("vision", 2, 0): {1: 2}, ("vision", 3, 0): {1: 1}}
    assert signals.given == {("vision", 0, 1): (0,), ("vision", 1, 1): (0,)}
