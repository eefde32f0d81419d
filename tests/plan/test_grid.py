"""Grids, lanes and gangs against definitions that are read off one rank at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.layout.grid import Coordinates, Grid, Layout
from hetsched.layout.placement import StageOrder, find_gangs, find_lanes

DEGREES = list(product((1, 2, 3), repeat=4))
Lanes = tuple[tuple[int, ...], ...]


def grid_of(tp: int, cp: int, dp: int, pp: int) -> Grid:
    layout = Layout(tp=tp, cp=cp, dp=dp, pp=pp)
    return Grid(layout, tuple(range(100, 100 + 7 * layout.num_ranks, 7)))


def walk(layout: Layout) -> Iterator[Coordinates]:
    """All coordinates in grid order, as nested loops."""
    for pp in range(layout.pp):
        for dp in range(layout.dp):
            for cp in range(layout.cp):
                for tp in range(layout.tp):
                    yield Coordinates(tp=tp, cp=cp, dp=dp, pp=pp)


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_ranks_follow_each_other_with_tp_fastest_then_cp_dp_pp(degrees: tuple[int, int, int, int]) -> None:
    grid = grid_of(*degrees)
    places = list(walk(grid.layout))
    assert [grid.coordinates(rank) for rank in grid.ranks] == places
    assert [grid.rank(tp=at.tp, cp=at.cp, dp=at.dp, pp=at.pp) for at in places] == list(grid.ranks)
    assert all(rank in grid for rank in grid.ranks) and 101 not in grid


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_replicas_and_pipeline_ranks_are_those_of_equal_coordinates(degrees: tuple[int, int, int, int]) -> None:
    grid = grid_of(*degrees)
    for pp in range(grid.layout.pp):
        same = [rank for rank in grid.ranks if grid.coordinates(rank).pp == pp]
        assert list(grid.pipeline_rank(pp)) == same
        for dp in range(grid.layout.dp):
            assert list(grid.replica(dp, pp)) == [rank for rank in same if grid.coordinates(rank).dp == dp]


def test_stages_go_round_or_down_and_up() -> None:
    assert [StageOrder.LOOP.pipeline_rank(stage, pp=3) for stage in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [StageOrder.V.pipeline_rank(stage, pp=3) for stage in range(9)] == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert [StageOrder.V.pipeline_rank(stage, pp=1) for stage in range(3)] == [0, 0, 0]


@st.composite
def overlapping_grids(draw: st.DrawFn) -> dict[str, Grid]:
    """One to three modules with any ranks of twelve, in any order."""
    grids = {}
    for name in draw(st.sampled_from(["a", "ab", "abc"])):
        layout = Layout(**{axis: draw(st.integers(1, 2)) for axis in ("tp", "cp", "dp")}, pp=draw(st.integers(1, 3)))
        ranks = draw(st.permutations(range(max(12, layout.num_ranks))))
        grids[name] = Grid(layout, tuple(ranks[: layout.num_ranks]))
    return grids


def check_lanes(grids: Mapping[str, Grid], lanes: Lanes) -> None:
    """Two ranks share a lane exactly if no module tells them apart; ranks and lanes ascend."""
    ranks = {rank for grid in grids.values() for rank in grid.ranks}
    assert sorted(rank for lane in lanes for rank in lane) == sorted(ranks)
    lane_of = {rank: lane for lane, members in enumerate(lanes) for rank in members}
    for one, other in product(ranks, repeat=2):
        alike = all(
            (one in grid) == (other in grid)
            and (one not in grid or grid.coordinates(one).pp == grid.coordinates(other).pp)
            for grid in grids.values()
        )
        assert (lane_of[one] == lane_of[other]) == alike, (one, other)
    assert all(list(lane) == sorted(lane) for lane in lanes)
    assert [lane[0] for lane in lanes] == sorted(lane[0] for lane in lanes)


@given(overlapping_grids())
def test_a_lane_is_a_maximal_set_of_ranks_that_all_layouts_treat_alike(grids: dict[str, Grid]) -> None:
    check_lanes(grids, find_lanes(grids))


OVERLAPPING = {"a": Grid(Layout(dp=4), (0, 1, 2, 3)), "b": Grid(Layout(dp=2, pp=2), (2, 3, 4, 5))}


@pytest.mark.parametrize(
    "wrong",
    [
        ((0, 1), (2, 3, 4, 5)),
        ((0,), (1,), (2, 3), (4, 5)),
        ((2, 3), (0, 1), (4, 5)),
        ((1, 0), (2, 3), (4, 5)),
        ((0, 1), (2, 3), (4,)),
    ],
    ids=str,
)
def test_wrong_lanes_fail_that_check(wrong: Lanes) -> None:
    assert find_lanes(OVERLAPPING) == ((0, 1), (2, 3), (4, 5))
    with pytest.raises(AssertionError):
        check_lanes(OVERLAPPING, wrong)


def check_gangs(grid: Grid, pp: int, lane_of: Mapping[int, int], gangs: Lanes) -> None:
    """Lanes are in one gang exactly if replicas lead from one to the other; each gang once, by its first replica."""
    replicas = [{lane_of[rank] for rank in grid.replica(dp, pp)} for dp in range(grid.layout.dp)]
    assert list(gangs) == [tuple(sorted(set(gang))) for gang in gangs]
    first = [next(dp for dp, replica in enumerate(replicas) if replica & set(gang)) for gang in gangs]
    assert first == sorted(first)
    assert sorted(lane for gang in gangs for lane in gang) == sorted(set().union(*replicas))
    for start in set().union(*replicas):
        reached = {start}
        while grown := [replica for replica in replicas if replica & reached and not replica <= reached]:
            reached |= grown[0]
        (mine,) = (gang for gang in gangs if start in gang)
        assert set(mine) == reached


@given(overlapping_grids())
def test_gangs_are_the_lanes_that_replicas_tie_together(grids: dict[str, Grid]) -> None:
    lane_of = {rank: lane for lane, ranks in enumerate(find_lanes(grids)) for rank in ranks}
    for grid in grids.values():
        for pp in range(grid.layout.pp):
            check_gangs(grid, pp, lane_of, find_gangs(grid, pp=pp, lane_of=lane_of))


def test_an_encoder_with_tp_over_two_pipeline_ranks_is_a_gang_of_both() -> None:
    encoder, llm = Grid(Layout(tp=2, dp=2), (0, 1, 2, 3)), Grid(Layout(pp=4), (0, 1, 2, 3))
    lane_of = {rank: lane for lane, ranks in enumerate(find_lanes({"e": encoder, "l": llm})) for rank in ranks}
    assert find_gangs(encoder, pp=0, lane_of=lane_of) == ((0, 1), (2, 3))
    assert find_gangs(llm, pp=2, lane_of=lane_of) == ((2,),)
    for wrong in (((0,), (1,), (2, 3)), ((0, 1, 2, 3),), ((2, 3), (0, 1)), ((0, 1),)):
        with pytest.raises((AssertionError, ValueError)):
            check_gangs(encoder, 0, lane_of, wrong)


def test_replicas_that_chain_lanes_make_one_gang() -> None:
    grid = Grid(Layout(tp=2, dp=3), (0, 1, 4, 5, 2, 3))
    assert find_gangs(grid, pp=0, lane_of={0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 4}) == ((0, 1, 2), (3, 4))
