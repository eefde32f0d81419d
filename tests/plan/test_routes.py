"""Routes against the dense oracle: exact rows, exact sums, the fewest rows across ranks, balanced replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise, product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetsched.layout.routes import (
    HolderRun,
    Segment,
    UseRun,
    backward_route,
    backward_route_array,
    forward_route,
    forward_route_array,
    segments_of,
)
from tests.plan.route_oracle import (
    Case,
    apply_backward,
    apply_forward,
    check_backward,
    check_forward,
    least_backward,
    least_forward,
    num_crossing,
    side_of,
)


def forward(case: Case) -> tuple[Segment, ...]:
    return forward_route(case.uses, case.producers, case.consumers, host_of=case.host_of)


def backward(case: Case, *, partial: bool) -> tuple[Segment, ...]:
    return backward_route(case.uses, case.producers, case.consumers, partial=partial, host_of=case.host_of)


def check_all(case: Case) -> None:
    route = forward(case)
    check_forward(case, route)
    assert num_crossing(route) == least_forward(case)
    if case.host_of is not None:
        assert num_crossing(route, case.host_of) == least_forward(case, case.host_of)
    for partial in (False, True):
        route = backward(case, partial=partial)
        check_backward(case, route, partial=partial)
        assert num_crossing(route) == least_backward(case, partial=partial)


# Every pair of small layouts ------------------------------------------------------------------------------------------

ITEMS = (3, 0, 5, 1, 4)  # rows of each item; the third is used twice
SAMPLES = ((2, 0), (1, 3), (), (4, 2))  # the items that each sample uses


def split(start: int, num_rows: int, parts: int) -> list[tuple[int, int]]:
    cuts = [start + num_rows * i // parts for i in range(parts + 1)]
    return [(a, b - a) for a, b in pairwise(cuts)]


def shard(runs: Sequence[tuple[int, int]], *, ranks: Sequence[int], is_split: bool) -> list[HolderRun]:
    """The runs of an axis, one after the other in local rows, on every rank or cut over the ranks."""
    held = []
    for index, rank in enumerate(ranks):
        row = 0
        for start, num_rows in runs:
            part = split(start, num_rows, len(ranks))[index] if is_split else (start, num_rows)
            held.append(HolderRun(rank, row, *part))
            row += part[1]
    return held


def producer_side(first_rank: int, *, dp: int, tp: int, is_split: bool) -> list[HolderRun]:
    starts = np.cumsum([0, *ITEMS]).tolist()
    held = []
    for replica in range(dp):
        runs = [(starts[item], ITEMS[item]) for item in range(replica, len(ITEMS), dp)]
        ranks = range(first_rank + replica * tp, first_rank + (replica + 1) * tp)
        held += shard(runs, ranks=ranks, is_split=is_split)
    return held


def consumer_side(first_rank: int, *, dp: int, cp: int, tp: int, is_split: bool) -> list[HolderRun]:
    ends = np.cumsum([0, *(sum(ITEMS[item] for item in sample) for sample in SAMPLES)]).tolist()
    held = []
    for replica, (sample, num_samples) in enumerate(split(0, len(SAMPLES), dp)):
        start, end = ends[sample], ends[sample + num_samples]
        pieces = split(start, end - start, 2 * cp)
        for part in range(cp):
            first = first_rank + (replica * cp + part) * tp
            zigzag = [pieces[part], pieces[2 * cp - 1 - part]]
            held += shard(zigzag, ranks=range(first, first + tp), is_split=is_split)
    return held


def all_uses() -> tuple[UseRun, ...]:
    starts, uses, position = np.cumsum([0, *ITEMS]).tolist(), [], 0
    for item in (item for sample in SAMPLES for item in sample):
        uses.append(UseRun(position, starts[item], ITEMS[item]))
        position += ITEMS[item]
    return tuple(uses)


DEGREES = [(tp, is_split) for tp, is_split in product((1, 2), (False, True)) if tp > 1 or not is_split]


@pytest.mark.parametrize("first_consumer", [0, 2, 9], ids=["colocated", "overlapping", "disjoint"])
@pytest.mark.parametrize("cp", [1, 2, 3])
def test_every_pair_of_layouts_is_exact_and_least(first_consumer: int, cp: int) -> None:
    for producer_dp, consumer_dp in product((1, 2, 3), (1, 2, 3)):
        for (tp, is_split), (consumer_tp, is_consumer_split) in product(DEGREES, DEGREES):
            producers = producer_side(0, dp=producer_dp, tp=tp, is_split=is_split)
            consumers = consumer_side(first_consumer, dp=consumer_dp, cp=cp, tp=consumer_tp, is_split=is_consumer_split)
            check_all(Case(all_uses(), tuple(producers), tuple(consumers)))


# Anything that a boundary may be --------------------------------------------------------------------------------------


@st.composite
def holder_runs(draw: st.DrawFn, cuts: list[int], *, first_rank: int, covers_all: bool) -> list[HolderRun]:
    """Rows between two cuts on any ranks; each rank has them in any order, neighbors joined or not, with gaps."""
    ranks = range(first_rank, first_rank + draw(st.integers(1, 4)))
    held: dict[int, list[tuple[int, int]]] = {rank: [] for rank in ranks}
    for start, end in pairwise(cuts):
        for rank in draw(st.sets(st.sampled_from(ranks), min_size=int(covers_all))):
            if held[rank] and held[rank][-1][1] == start and draw(st.booleans()):
                held[rank][-1] = (held[rank][-1][0], end)
            else:
                held[rank].append((start, end))
    runs = []
    for rank in ranks:
        row = 0
        for start, end in draw(st.permutations(held[rank])):
            row += draw(st.integers(0, 2))
            runs.append(HolderRun(rank, row, start, end - start))
            row += end - start
    return runs


def cut(draw: st.DrawFn, num_rows: int) -> list[int]:
    return sorted(draw(st.sets(st.integers(0, num_rows), max_size=5)) | {0, num_rows})


@st.composite
def cases(draw: st.DrawFn) -> Case:
    items = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    starts = np.cumsum([0, *items]).tolist()
    uses, position = [], 0
    for item in draw(st.lists(st.integers(0, len(items) - 1), max_size=6)):
        uses.append(UseRun(position, starts[item], items[item]))
        position += items[item]
    producers = draw(holder_runs(cut(draw, starts[-1]), first_rank=0, covers_all=True))
    consumers = draw(holder_runs(cut(draw, position), first_rank=draw(st.integers(0, 4)), covers_all=False))
    host_of = draw(st.none() | st.tuples(*[st.integers(0, 2)] * 8))
    return Case(tuple(uses), tuple(producers), tuple(consumers), host_of)


@given(cases())
@settings(max_examples=150)
def test_any_boundary_is_exact_and_least(case: Case) -> None:
    check_all(case)


@given(cases(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_backward_is_the_adjoint_of_forward(case: Case, partial: bool, random: Random) -> None:
    producers, consumers = side_of(case.producers), side_of(case.consumers)
    x = np.array([random.randint(-99, 99) for _ in range(1 + max([0, *producers.held.tolist()]))])
    y = np.array([random.randint(-99, 99) for _ in range(1 + max([0, *case.produced_of]))])
    ax = apply_forward(case, forward(case), x)
    aty = apply_backward(case, backward(case, partial=partial), y, partial=partial)
    use_rows = [consumers.held.tolist().index(use) for use in consumers.holders]
    produced_rows = [producers.held.tolist().index(row) for row in producers.holders]
    assert (ax * y[consumers.held])[use_rows].sum() == (x[producers.held] * aty)[produced_rows].sum()


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_route_does_not_depend_on_the_order_of_the_runs(case: Case, random: Random) -> None:
    uses, producers, consumers = list(case.uses), list(case.producers), list(case.consumers)
    for runs in (uses, producers, consumers):
        random.shuffle(runs)
    shuffled = Case(tuple(uses), tuple(producers), tuple(consumers), case.host_of)
    assert forward(shuffled) == forward(case)
    assert backward(shuffled, partial=True) == backward(case, partial=True)


# The choice of the source ---------------------------------------------------------------------------------------------


def test_replicas_send_within_one_piece_of_each_other() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 200).tolist()
    starts = np.cumsum([0, *lengths]).tolist()
    runs = list(zip(starts, lengths, strict=False))
    producers = shard(runs, ranks=range(3), is_split=False)
    consumers = [HolderRun(3 + i % 5, start, start, num) for i, (start, num) in enumerate(runs)]
    sent = [0, 0, 0]
    for s in forward_route([UseRun(0, 0, starts[-1])], producers, consumers):
        sent[s.src_rank] += s.num_rows
    assert max(sent) - min(sent) <= max(lengths)


def test_neighboring_rows_travel_as_one_segment() -> None:
    uses = [UseRun(i, i, 1) for i in range(8)]
    producers = [HolderRun(0, i, i, 1) for i in range(8)]
    assert forward_route(uses, producers, [HolderRun(1, 3, 0, 8)]) == (Segment(0, 0, 1, 3, 8),)


# A route that is not right --------------------------------------------------------------------------------------------

# Ranks 0 and 1 both hold all items; rank 1 consumes too, and ranks 2 and 3 hold replicas.
SUSPECT = Case(
    (UseRun(0, 0, 3), UseRun(3, 5, 4), UseRun(7, 0, 3)),
    (HolderRun(0, 0, 0, 9), HolderRun(1, 0, 5, 4), HolderRun(1, 4, 0, 5)),
    (HolderRun(1, 2, 0, 5), HolderRun(2, 0, 2, 8), HolderRun(3, 1, 2, 8)),
)

Mutation = Callable[[list[Segment], int], list[Segment]]
MUTATIONS: dict[str, Mutation] = {
    "dropped segment": lambda route, i: route[:i] + route[i + 1 :],
    "doubled segment": lambda route, i: [*route, route[i]],
    "source off by one row": lambda route, i: [
        *route[:i],
        replace(route[i], src_row=route[i].src_row + 1),
        *route[i + 1 :],
    ],
    "target off by one row": lambda route, i: [
        *route[:i],
        replace(route[i], dst_row=route[i].dst_row + 1),
        *route[i + 1 :],
    ],
    "wrong source replica": lambda route, i: [
        *route[:i],
        replace(route[i], src_rank=(route[i].src_rank + 1) % 4),
        *route[i + 1 :],
    ],
    "last row lost": lambda route, i: [*route[:i], replace(route[i], num_rows=route[i].num_rows - 1), *route[i + 1 :]],
}


def check_one(route: Sequence[Segment], direction: str) -> None:
    if direction == "forward":
        check_forward(SUSPECT, route)
        assert num_crossing(route) == least_forward(SUSPECT)
    else:
        check_backward(SUSPECT, route, partial=direction == "partial")
        assert num_crossing(route) == least_backward(SUSPECT, partial=direction == "partial")


def sound_route(direction: str) -> list[Segment]:
    return list(forward(SUSPECT) if direction == "forward" else backward(SUSPECT, partial=direction == "partial"))


DIRECTIONS = ["forward", "replicated", "partial"]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_route_fails_the_oracle(mutation: str, direction: str) -> None:
    route = sound_route(direction)
    check_one(route, direction)
    for i in range(len(route)):
        with pytest.raises(AssertionError):
            check_one(MUTATIONS[mutation](route, i), direction)


def test_a_missing_sum_fails_the_oracle() -> None:
    seen: set[tuple[int, int]] = set()
    first_addends = []
    for s in backward(SUSPECT, partial=False):
        rows = {(s.dst_rank, s.dst_row + i) for i in range(s.num_rows)}
        if not rows & seen:
            first_addends.append(s)
        seen |= rows
    with pytest.raises(AssertionError):
        check_backward(SUSPECT, first_addends, partial=False)


def test_the_transposed_forward_route_fails_as_a_backward_route() -> None:
    transposed = [Segment(s.dst_rank, s.dst_row, s.src_rank, s.src_row, s.num_rows) for s in forward(SUSPECT)]
    with pytest.raises(AssertionError):
        check_backward(SUSPECT, transposed, partial=False)


def test_swapped_addends_fail_the_oracle() -> None:
    with pytest.raises(AssertionError, match="out of order"):
        check_backward(SUSPECT, sound_route("partial")[::-1], partial=True)


# Bad input and the other forms of a route -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uses": [(0, 2, 4)]}, r"uses: produced rows 4..5 are used, but no producer holds them"),
        ({"uses": [(0, 0, 4), (3, 0, 1)]}, r"uses: use positions 3..3 are in two runs"),
        ({"consumers": [(1, 0, 2, 4)]}, r"consumers: rank 1 holds use positions 4..5, which are in no use run"),
        ({"producers": [(0, 0, 0, 4), (0, 4, 2, 4)]}, r"producers: rank 0 holds produced rows 2..3 twice"),
        ({"consumers": [(1, 0, 0, 2), (1, 1, 2, 2)]}, r"consumers: rank 1 keeps two runs in its local rows 1..1"),
        ({"consumers": [(-1, 0, 0, 4)]}, r"consumers\[0\].rank: expected 0 to \d+, got -1"),
        ({"uses": [(0, 0, -4)]}, r"uses\[0\].num_rows: expected 0 to \d+, got -4"),
        ({"host_of": [0]}, r"consumers\[0\].rank: expected 0 to 0, got 1"),
        ({"producers": [(0, 0, 4)]}, r"producers: expected integers \[n, 4\] \(rank, row, start, num_rows\), got"),
        ({"uses": [(0, 0, 4.0)]}, r"uses: expected integers \[n, 3\]"),
    ],
)
def test_a_boundary_that_is_not_sound_is_named(change: dict[str, object], message: str) -> None:
    sound = {"uses": [(0, 0, 4)], "producers": [(0, 0, 0, 4)], "consumers": [(1, 0, 0, 4)]}
    with pytest.raises(ValueError, match=message):
        forward_route(**(sound | change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        backward_route(**(sound | change), partial=False)  # type: ignore[arg-type]


@given(cases())
@settings(max_examples=40)
def test_the_array_form_is_the_same_route(case: Case) -> None:
    sides = [np.array(runs, np.int64) for runs in (case.uses, case.producers, case.consumers)]
    assert segments_of(forward_route_array(*sides, host_of=case.host_of)) == forward(case)
    array = backward_route_array(*sides, partial=True, host_of=case.host_of)
    assert segments_of(array) == backward(case, partial=True)


def test_no_rows_give_an_empty_route() -> None:
    assert forward_route([], [], []) == ()
    assert backward_route([], [(0, 0, 0, 4)], [], partial=True) == ()
