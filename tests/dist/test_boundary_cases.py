"""What benchmarks/boundary.py moves, on paper: every row gets to its users, and as few bytes cross as must."""

from __future__ import annotations

import pytest
import torch

from benchmarks._boundary_cases import SUITES, Case, Spec, make_case

EVERY = {str(spec) + f", {len(spec.lengths)} items": spec for specs in SUITES.values() for spec in specs}
SAMPLE = 8192
CROSSING = {
    "tp1dp2/tp2dp1": (4, 2),
    "tp2dp1/tp1dp2": (2, 4),
    "tp1dp2/tp1dp2": (2, 2),
    "tp2dp1/tp2dp1": (4, 4),
    "tp1dp2/tp2dp1sp": (2, 2),
    "tp2dp1/tp2dp1sp": (2, 4),
    "tp1dp4,tp4dp1": (3, 0),
    "tp1dp4,tp2dp2": (1, 0),
    "tp4dp1,tp1dp4": (0, 3),
    "tp1dp4,tp4dp1sp": (0.75, 0.75),
    "tp1dp4,tp2dp2sp": (0.5, 0.5),
    "tp4dp1sp,tp1dp4": (0.75, 0.75),
}
"""Of what four GPUs do: samples' worth of rows that cross at the busiest rank, forward and backward."""


def delivered(case: Case, rank: int) -> torch.Tensor:
    """What the route brings to a rank, row by row."""
    found = torch.full((len(case.rows_of(case.users, rank)),), -1)
    for s in case.route:
        if s.dst_rank == rank:
            made = case.rows_of(case.makers, s.src_rank)
            found[s.dst_row : s.dst_row + s.num_rows] = made[s.src_row : s.src_row + s.num_rows]
    return found


@pytest.mark.parametrize("name", EVERY)
def test_routes_bring_the_rows_that_are_used(name: str) -> None:
    spec = EVERY[name]
    case = make_case(spec)
    for rank in range(spec.num_ranks):
        assert torch.equal(delivered(case, rank), case.used[case.rows_of(case.users, rank)])


@pytest.mark.parametrize("layouts", CROSSING)
def test_the_busiest_rank_moves_what_it_must(layouts: str) -> None:
    specs = [spec for spec in SUITES["4gpu"] if spec.layouts == layouts and not spec.is_shuffled]
    assert [spec.is_forward for spec in specs] == [True, False]
    assert tuple(make_case(spec).busiest_rows() / SAMPLE for spec in specs) == CROSSING[layouts]


def test_the_suite_of_four_gpus_has_every_such_boundary() -> None:
    assert {spec.layouts for spec in SUITES["4gpu"] if not spec.is_shuffled} == set(CROSSING)
    assert {spec.num_ranks for spec in SUITES["4gpu"]} == {4}
    assert {spec.num_ranks for spec in SUITES["2gpu"]} == {2}


def test_a_dropped_segment_is_noticed() -> None:
    case = make_case(Spec("dp2,tp2", (7, 9)))
    broken = Case(case.num_rows, case.route[1:], case.makers, case.users, case.used)
    assert any(not torch.equal(delivered(broken, rank), case.used[case.rows_of(case.users, rank)]) for rank in range(2))
