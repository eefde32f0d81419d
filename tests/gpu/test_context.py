"""Context-parallel attention over NCCL: any shard against float64, errors of one GPU, bitwise repeats."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hetsched.kernels.attention import attend, naive
from hetsched.kernels.attention.ranges import packed_ranges
from hetsched.kernels.attention.task import AttentionTask
from hetsched.layout.tokens import tokens_of
from hetsched.parallel import ring
from tests.dist.context_cases import ContextCase, MapKind
from tests.dist.context_work import MUTANTS, results_of, task_of
from tests.gpu.shared_gpus import device_of
from tests.kernels.attention_cases import lse_error, poison, relative

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")

FUZZ = (0, 1, 127, 128, 129, 1000)
NAMES = ("out", "dq", "dk", "dv")


def cases(cp: int) -> list[ContextCase]:
    """Every kind of map and both ways, with and without a window."""
    generator, result = np.random.default_rng(cp), []
    kinds: tuple[MapKind, ...] = ("planned", "zigzag", "random")
    for seed in range(12):
        lengths = (2500, *(int(n) for n in generator.choice(FUZZ, size=generator.integers(0, 5))))
        heads, window = ((4, 4), (4, 1), (16, 2))[seed % 3], (None, None, 200)[seed // 4]
        case = ContextCase(lengths, cp, kinds[seed % 3], heads, window, torch.bfloat16, seed)
        result.append(replace(case, head_dim=(128, 128, 64)[seed % 3]))
    result.append(replace(result[0], map_kind="one rank"))
    by_heads = [replace(case, heads=(8, 8), forced="ulysses") for case in result[:3]]
    return [*result, *by_heads]


def references(case: ContextCase, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """lse and results of the whole sequence in float64, and the results of one GPU in bf16."""
    ranges = packed_ranges(case.lengths, window=case.window)
    q, k, v, dout = (x.double() for x in inputs)
    out, lse = naive.forward(q, k, v, ranges)
    truth = [out, *naive.backward(dout, q, k, v, lse, naive.delta(out, dout), ranges=ranges)]
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    task = AttentionTask(ranges, num_heads=case.heads[0], num_kv_heads=case.heads[1], device=q.device)
    single, _ = attend.attend(leaves[0], leaves[1], leaves[2], task)
    return lse, truth, [single.detach(), *torch.autograd.grad(single, leaves, inputs[3])]


def check(case: ContextCase, rank: int, group: dist.ProcessGroup) -> None:
    """Errors over all ranks are at most 1.1 times those of one GPU."""
    inputs = [x.cuda() for x in case.inputs()]
    lse, truth, single = references(case, inputs)
    task, tokens = task_of(case, rank, device="cuda"), torch.from_numpy(tokens_of(case.token_map, rank)).cuda()
    own = [x[tokens] for x in inputs]
    runs = []
    for _ in range(3):
        poison("cuda")
        runs.append(results_of(own[0], own[1], own[2], own[3], task=task, group=group))
    found = gathered([difference for run in runs[1:] for difference in differences(run, runs[0])], group)
    assert not any(found), (found, case)
    assert lse_error(ring.forward(own[0], own[1], own[2], task, group=group)[1], lse[:, tokens]) < 1e-4, case
    for name, mine, theirs, exact in zip(NAMES, runs[0], single, truth, strict=True):
        square = (mine.double() - exact[tokens]).square().sum()
        dist.all_reduce(square, group=group)
        error = float(square.sqrt() / exact.norm())
        assert error <= 1.1 * relative(theirs, exact), (name, case)


def differences(results: Sequence[Tensor], expected: Sequence[Tensor]) -> list[str]:
    """Of two repeats, for people."""
    found = []
    for name, one, other in zip(NAMES, results, expected, strict=True):
        if not torch.equal(one, other):
            rows = (one != other).flatten(1).any(1).nonzero().flatten()
            place = f"{len(rows)} of {len(one)} rows from {int(rows[0])} to {int(rows[-1])}"
            found.append(f"{name}: {place}, {int(one.isnan().sum())} and {int(other.isnan().sum())} values are NaN")
    return found


def gathered(found: list[str], group: dist.ProcessGroup) -> list[list[str]]:
    """By rank; every rank has the same, so that none is left alone by one that fails."""
    every: list[Any] = [None] * group.size()
    dist.all_gather_object(every, found, group=group)
    return every


def a_repeat_with_other_bits(rank: int, group: dist.ProcessGroup) -> None:
    """One row of dq on the last rank, in the third repeat: every rank says so."""
    calls, original = count(), results_of

    def disturbed(*tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        results = original(*tensors, **options)
        if next(calls) == 2 and rank == group.size() - 1:
            results[1][-1] += 1
        return results

    with (
        mock.patch.object(sys.modules[__name__], "results_of", disturbed),
        pytest.raises(AssertionError, match="dq: 1 of"),
    ):
        check(cases(group.size())[3], rank, group)


def all_cases(rank: int, group: dist.ProcessGroup) -> None:
    for case in cases(group.size()):
        check(case, rank, group)


def a_lost_block(rank: int, group: dist.ProcessGroup) -> None:
    case = ContextCase((1000, 500), group.size(), "zigzag", dtype=torch.bfloat16, head_dim=128)
    check(case, rank, group)
    with MUTANTS["a lost block"](), pytest.raises(AssertionError):
        check(case, rank, group)


def work(rank: int, cp: int, port: int, function: Callable[[int, dist.ProcessGroup], None]) -> None:
    device, address = device_of(rank, num_ranks=cp), f"tcp://127.0.0.1:{port}"
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=cp, device_id=device)
    group = dist.group.WORLD
    assert group is not None
    function(rank, group)
    dist.barrier()
    dist.destroy_process_group()


def run(cp: int, function: Callable[[int, dist.ProcessGroup], None]) -> None:
    """Call a function of this module's kind on ``cp`` ranks, each with its rank and their group; GPUs may be fewer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(cp, port, function), nprocs=cp)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_any_shard_has_the_errors_of_one_gpu(cp: int) -> None:
    run(cp, all_cases)


def test_a_lost_block_is_seen() -> None:
    run(2, a_lost_block)


def test_a_repeat_with_other_bits_is_seen() -> None:
    run(2, a_repeat_with_other_bits)
