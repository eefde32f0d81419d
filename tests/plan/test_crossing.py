"""Crossings against dense arrays: every use gets its item's rows, every row the sum of its uses' gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetsched.batch import Placeholder, Sample
from hetsched.layout.crossing import Crossing, Side, cross
from hetsched.layout.grid import Grid, Layout
from hetsched.layout.held import Held
from hetsched.layout.routes import segments_of
from hetsched.layout.shares import Share, items_of, share_items, share_samples
from hetsched.layout.tokens import Group, positions_of, spread_zigzag
from tests.plan.batches import batches, item_of

Rows = dict[int, NDArray[np.int64]]
IntArray = NDArray[np.int64]
Mutation = Callable[[IntArray], IntArray]
HIDDEN = 2


@dataclass(frozen=True)
class Boundary:
    """One microbatch at a boundary, and its crossing."""

    producer: Side
    produced: tuple[Share, ...]
    consumer: Side
    consumed: tuple[Share, ...]
    crossing: Crossing

    def maker(self, replica: int) -> int:
        return self.producer.grid.rank(dp=replica, pp=self.producer.pp)

    def user(self, replica: int) -> int:
        return self.consumer.grid.rank(dp=replica, pp=self.consumer.pp)

    def index(self, replica: int) -> IntArray:
        return positions_of(*self.crossing.index[self.user(replica)].T)


def boundary_of(samples: Sequence[Sample], producer: Side, consumer: Side, *, has_backward: bool = True) -> Boundary:
    num_makers, num_users = producer.grid.layout.dp, consumer.grid.layout.dp
    consumed = share_samples(samples, num_microbatches=1, num_replicas=num_users, cost=lambda n: n)
    groups = [[(items, range(num_makers))] for items in items_of(consumed, "vision")]
    produced = share_items(groups, num_replicas=num_makers, cost=lambda n: n)
    made, wanted = list(map(Held, produced[0])), list(map(Held, consumed[0]))
    crossing = cross(producer, made, consumer, wanted, has_backward=has_backward)
    return Boundary(producer, produced[0], consumer, consumed[0], crossing)


@st.composite
def boundaries(draw: st.DrawFn) -> Boundary:
    """Random batches between grids of any ranks, disjoint, equal or overlapping."""

    def side(module: str) -> Side:
        layout = Layout(dp=draw(st.integers(1, 3)), pp=draw(st.integers(1, 2)))
        ranks = draw(st.permutations(range(8)))[: layout.num_ranks]
        return Side(module, Grid(layout, tuple(ranks)), draw(st.integers(0, layout.pp - 1)))

    return boundary_of(draw(batches(modules=("vision", "audio"))), side("vision"), side("llm"))


def carry(route: IntArray, rows: Rows, num_rows: dict[int, int]) -> Rows:
    """What arrives on each rank: sums where several rows reach one place."""
    arrived = {rank: np.zeros((count, HIDDEN), np.int64) for rank, count in num_rows.items()}
    for s in segments_of(route):
        sent = rows[s.src_rank][s.src_row : s.src_row + s.num_rows]
        assert len(sent) == s.num_rows
        arrived[s.dst_rank][s.dst_row : s.dst_row + s.num_rows] += sent
    return arrived


def rows_of_items(b: Boundary) -> dict[int, NDArray[np.int64]]:
    """By key the rows of an item, different from all others."""
    keys = sorted(item.key for share in b.produced for item in share.members)
    return {key: 1000 * (key + 1) + np.arange(10 * HIDDEN).reshape(10, HIDDEN) for key in keys}


def check_forward(b: Boundary) -> None:
    """Each replica's packed sequence has each item's rows at each of its placeholders, and nothing elsewhere."""
    rows_of = rows_of_items(b)
    made = {
        b.maker(dp): np.concatenate(
            [np.empty((0, HIDDEN), np.int64), *(rows_of[item.key][: item.num_rows] for item in share.members)]
        )
        for dp, share in enumerate(b.produced)
    }
    assert b.crossing.produced == {rank: len(rows) for rank, rows in made.items()}
    arrived = carry(b.crossing.forward, made, {rank: b.crossing.num_arriving(rank) for rank in b.crossing.index})
    for dp, share in enumerate(b.consumed):
        packed = np.zeros((share.num_tokens, HIDDEN), np.int64)
        packed[b.index(dp)] = arrived[b.user(dp)]
        wanted, start = np.zeros_like(packed), 0
        for sample in share.members:
            for p in sample.placeholders:
                if p.item.module == "vision":
                    at = start + p.start
                    wanted[at : at + p.item.num_rows] = rows_of[p.item.key][: p.item.num_rows]
            start += sample.num_tokens
        np.testing.assert_array_equal(packed, wanted)


def check_backward(b: Boundary) -> None:
    """Each item's rows get the sum of the gradients at all of its placeholders on all replicas."""
    random = np.random.default_rng(0)
    packed = [random.integers(-9, 9, (share.num_tokens, HIDDEN)) for share in b.consumed]
    wanted = {key: np.zeros((10, HIDDEN), np.int64) for key in rows_of_items(b)}
    for gradient, share in zip(packed, b.consumed, strict=True):
        start = 0
        for sample in share.members:
            for p in sample.placeholders:
                if p.item.module == "vision":
                    at = start + p.start
                    wanted[p.item.key][: p.item.num_rows] += gradient[at : at + p.item.num_rows]
            start += sample.num_tokens
    sent = {b.user(dp): gradient[b.index(dp)] for dp, gradient in enumerate(packed)}
    arrived = carry(b.crossing.backward, sent, dict(b.crossing.produced))
    for dp, share in enumerate(b.produced):
        start = 0
        for item in share.members:
            got = arrived[b.maker(dp)][start : start + item.num_rows]
            np.testing.assert_array_equal(got, wanted[item.key][: item.num_rows])
            start += item.num_rows


@given(boundaries())
def test_every_use_gets_the_rows_of_its_item(b: Boundary) -> None:
    check_forward(b)


@given(boundaries())
def test_every_row_gets_the_sum_of_its_gradients(b: Boundary) -> None:
    check_backward(b)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, "none was given, but there are 2 context-parallel ranks"),
        (spread_zigzag(9, Group(cp=2)), "token 9 of 10 has no holder"),
        (spread_zigzag(10, Group(cp=3)), "expected ranks 0 to 1"),
    ],
)
def test_a_map_of_tokens_that_does_not_fit_is_refused_by_name(tokens: IntArray | None, message: str) -> None:
    llm = Side("llm", Grid(Layout(cp=2), (0, 1)), 0)
    samples = Share((Sample(0, 10, 1),), (10,), 10)
    with pytest.raises(ValueError, match=f"module llm, replica 0, map of tokens: {message}"):
        cross(
            Side("vision", Grid(Layout(), (0,)), 0),
            [Held(Share((), (), 0))],
            llm,
            [Held(samples, tokens)],
            has_backward=True,
        )


SHARED, OWN, OTHER = item_of(3), item_of(2), item_of(1)
SAMPLES = (
    Sample(0, 14, 1, (Placeholder(SHARED, 1), Placeholder(OWN, 6), Placeholder(SHARED, 9))),
    Sample(1, 13, 1, (Placeholder(SHARED, 0), Placeholder(OTHER, 5))),
)
SIDES = Side("vision", Grid(Layout(dp=2), (0, 1)), 0), Side("llm", Grid(Layout(dp=2, pp=2), (0, 1, 2, 3)), 1)


def test_a_frozen_encoder_gets_nothing_back() -> None:
    b = boundary_of(SAMPLES, *SIDES, has_backward=False)
    check_forward(b)
    assert not len(b.crossing.backward)


@pytest.fixture(scope="module")
def fixed() -> Boundary:
    """Two replicas on either side; one item is used on both, and twice on one."""
    return boundary_of(SAMPLES, *SIDES)


def _lose(route: IntArray) -> IntArray:
    return route[1:]


def _shift(route: IntArray) -> IntArray:
    moved = route.copy()
    moved[moved[:, 4].argmax()] += (0, 1, 0, 0, -1)
    return moved


def _repeat(route: IntArray) -> IntArray:
    return np.concatenate([route, route[:1]])


@pytest.mark.parametrize("mutate", [_lose, _shift, _repeat])
def test_a_wrong_crossing_fails_those_checks(mutate: Mutation, fixed: Boundary) -> None:
    check_forward(fixed)
    check_backward(fixed)
    with pytest.raises(AssertionError):
        check_forward(replace(fixed, crossing=replace(fixed.crossing, forward=mutate(fixed.crossing.forward))))
    with pytest.raises(AssertionError):
        check_backward(replace(fixed, crossing=replace(fixed.crossing, backward=mutate(fixed.crossing.backward))))


def test_a_wrong_index_fails_those_checks(fixed: Boundary) -> None:
    index = {rank: runs + np.array([rank == fixed.user(0), 0]) for rank, runs in fixed.crossing.index.items()}
    wrong = replace(fixed, crossing=replace(fixed.crossing, index=index))
    for check in (check_forward, check_backward):
        with pytest.raises(AssertionError):
            check(wrong)
