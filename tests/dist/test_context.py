"""Context-parallel attention on gloo against float64 on one process, forward and gradients, for any shard."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hetsched.kernels.attention import attend, naive
from hetsched.kernels.attention.ranges import packed_ranges
from hetsched.kernels.attention.task import AttentionTask
from hetsched.parallel.context import context_attention
from tests.dist.context_cases import ContextCase, by_heads, digest_of, fuzzed
from tests.dist.context_work import MUTANTS, Part, attend_for_another_rank, attend_on_ranks, task_of
from tests.dist.pool import Pool, RanksFailed
from tests.kernels.attention_cases import lse_error, relative

NAMES = ("out", "lse", "dq", "dk", "dv")


def truth(case: ContextCase) -> tuple[Tensor, ...]:
    """Output, lse, dq, dk and dv of the whole sequence in float64."""
    q, k, v, dout = (x.double() for x in case.inputs())
    ranges = packed_ranges(case.lengths, window=case.window)
    out, lse = naive.forward(q, k, v, ranges)
    return out, lse.T, *naive.backward(dout, q, k, v, lse, naive.delta(out, dout), ranges=ranges)


def alone(case: ContextCase) -> tuple[Tensor, ...]:
    """The same on one process, in the case's own precision."""
    *leaves, dout = case.inputs()
    leaves = [x.requires_grad_() for x in leaves]
    ranges = packed_ranges(case.lengths, window=case.window)
    task = AttentionTask(ranges, num_heads=case.heads[0], num_kv_heads=case.heads[1])
    out, lse = attend.attend(leaves[0], leaves[1], leaves[2], task)
    return out.detach(), lse.T, *torch.autograd.grad(out, leaves, dout)


def joined(case: ContextCase, parts: list[Part]) -> tuple[Tensor, ...]:
    """The ranks' rows as those of the whole sequence; rows that no rank has stay NaN."""
    total, results = sum(case.lengths), []
    for name, *pieces in zip(NAMES, *(part.results for part in parts), strict=True):
        whole = torch.full((total, *pieces[0].shape[1:]), float("nan"), dtype=pieces[0].dtype)
        for part, piece in zip(parts, pieces, strict=True):
            assert not piece.isnan().any(), name
            whole[part.tokens] = piece
        results.append(whole)
    return tuple(results)


def run(ranks: Pool, cases: list[ContextCase], mutant: str | None = None) -> list[tuple[Tensor, ...]]:
    """The results of each case, on as many ranks as the cases say."""
    by_rank = ranks.run(attend_on_ranks, cases, mutant, num_ranks=cases[0].cp)
    results = []
    for case, *parts in zip(cases, *by_rank, strict=True):
        # first whether all started alike: what differs later is then attention's doing
        assert {part.digest for part in parts} == {digest_of(case)}, case
        assert all(part.is_repeatable for part in parts), case
        results.append(joined(case, parts))
    return results


def assert_exact(case: ContextCase, got: tuple[Tensor, ...], *, tolerance: float = 1e-12) -> None:
    expected = truth(case)
    floor = 1e-3 * float(expected[0].norm())  # in a window of 1 nothing depends on q
    assert lse_error(got[1], expected[1]) < 1e-4, case
    for name, mine, exact in zip(NAMES, got, expected, strict=True):
        assert relative(mine, exact, floor=floor) < tolerance, (name, case)


@pytest.mark.parametrize("cp", [1, 2, 3, 4, 8])
def test_any_shard_of_fuzzed_documents_equals_float64_on_one_process(ranks: Pool, cp: int) -> None:
    cases = fuzzed(cp, num_cases=6)
    for case, got in zip(cases, run(ranks, cases), strict=True):
        assert_exact(case, got)


@pytest.mark.parametrize("cp", [2, 3, 4, 8])
def test_ulysses_equals_float64_on_one_process(ranks: Pool, cp: int) -> None:
    cases = by_heads(cp)
    for case, got in zip(cases, run(ranks, cases), strict=True):
        assert_exact(case, got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_errors_are_those_of_one_process_and_do_not_grow_with_ranks(ranks: Pool, dtype: torch.dtype) -> None:
    one = [replace(case, cp=1, map_kind="zigzag") for case in fuzzed(0, num_cases=4, dtype=dtype)]
    references = [(truth(case), alone(case)) for case in one]
    for cp in (2, 4, 8):
        cases = [replace(case, cp=cp) for case in one]
        for case, got, (expected, single) in zip(cases, run(ranks, cases), references, strict=True):
            assert lse_error(got[1], expected[1]) < 1e-4
            for name, mine, theirs, exact in zip(NAMES, got, single, expected, strict=True):
                if name != "lse":
                    assert relative(mine, exact) <= 1.1 * relative(theirs, exact), (name, case)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_steps_are_seen(ranks: Pool, mutant: str) -> None:
    is_precise = mutant != "gradients that do not come back"
    case = ContextCase((300, 129), 2, "zigzag", dtype=torch.float64 if is_precise else torch.bfloat16)
    tolerance = 1e-12 if is_precise else 1e-2
    if mutant == "rows that stay by rank":
        case = replace(case, forced="ulysses")
    assert_exact(case, *run(ranks, [case]), tolerance=tolerance)
    with pytest.raises(AssertionError):
        assert_exact(case, *run(ranks, [case], mutant), tolerance=tolerance)


def test_only_rows_that_are_needed_travel(ranks: Pool) -> None:
    def sent_rows(case: ContextCase) -> list[int]:
        return [part[0].sent_rows for part in ranks.run(attend_on_ranks, [case], num_ranks=case.cp)]

    assert sent_rows(ContextCase((300, 300), 2)) == [0, 0]
    # rank 0 has the first and the last 128 rows, rank 1 those between
    assert sent_rows(ContextCase((512,), 2, "zigzag")) == [128, 256]
    assert sent_rows(ContextCase((512,), 2, "zigzag", window=11)) == [10, 10]


def test_a_group_that_is_not_the_tasks_is_refused(ranks: Pool) -> None:
    case = ContextCase((10, 3), 2)
    q, k, v, _ = case.inputs()
    with pytest.raises(ValueError, match="needs their group"):
        context_attention(q, k, v, task_of(case, 0), group=None)
    with pytest.raises(RanksFailed, match="made for rank 1 of 2, but the group says rank 0 of 2"):
        ranks.run(attend_for_another_rank, case, num_ranks=2)


def test_one_rank_needs_no_group() -> None:
    case = ContextCase((10, 3), 1)
    q, k, v, _ = case.inputs()
    assert relative(context_attention(q, k, v, task_of(case, 0), group=None), truth(case)[0]) < 1e-12
