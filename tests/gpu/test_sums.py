"""Sums of gradients by NCCL's own calls on GPUs: the bits of torch's, behind work of any length on the stream."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hetsched.errors import JobError
from hetsched.parallel.copies import NcclCopies, TorchCopies, copies_of
from hetsched.parallel.data import sum_gradients
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch

NUM_GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(NUM_GPUS < 2 or not dist.is_nccl_available(), reason="needs two GPUs and NCCL")

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(1021, 513), (7,), (1,), (0, 4), (2, 3, 5), (2048, 1024)]
REPEATS = 20
LATE = 5_000_000
"""Cycles, some milliseconds."""


def gradients(dtype: torch.dtype, *, rank: int, seed: int) -> list[torch.Tensor]:
    device = torch.device("cuda", dist.get_rank())
    generator = torch.Generator(device).manual_seed(1000 * seed + rank)
    return [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in SHAPES]


def compare(is_mutant: bool) -> None:
    """On every rank; raises AssertionError where sums differ from torch's, or from those in float64."""
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    torch.cuda.set_device(rank)
    copies = copies_of(group, device=torch.device("cuda", rank))
    assert isinstance(copies, NcclCopies)
    aside: Any = torch.cuda.Stream()
    early = mock.patch.object(NcclCopies, "_stream", return_value=aside.cuda_stream)
    for seed, dtype in enumerate(DTYPES * REPEATS):
        mine = gradients(dtype, rank=rank, seed=seed)
        by_torch, found = ([nn.Parameter(torch.empty_like(of)) for of in mine] for _ in range(2))
        for p, of in zip(by_torch, mine, strict=True):
            p.grad = of.clone()
        sum_gradients(by_torch, TorchCopies(group))
        for p in found:
            p.grad = torch.full_like(p, float("nan"))
        # Gradients come late, at another time on each rank.
        torch.cuda._sleep(LATE * ((seed + rank) % 3))
        for p, of in zip(found, mine, strict=True):
            assert p.grad is not None
            p.grad.copy_(of)
        with early if is_mutant else nullcontext():
            sum_gradients(found, copies)
        every = zip(*(gradients(dtype, rank=other, seed=seed) for other in range(group.size())), strict=True)
        for p, q, parts in zip(found, by_torch, every, strict=True):
            assert p.grad is not None and q.grad is not None
            assert torch.equal(p.grad, q.grad), f"{dtype}, {tuple(p.shape)}"
            exact = torch.stack([part.double() for part in parts])
            bound = torch.finfo(dtype).eps * exact.abs().sum(0)
            assert bool(((p.grad.double() - exact.sum(0)).abs() <= bound).all()), f"{dtype}, {tuple(p.shape)}"


def test_sums_have_the_bits_of_torchs_collectives() -> None:
    launch(compare, False, num_ranks=NUM_GPUS, backend=BACKEND)


def test_sums_that_do_not_wait_for_gradients_are_noticed() -> None:
    with pytest.raises(JobError, match="AssertionError"):
        launch(compare, True, num_ranks=NUM_GPUS, backend=BACKEND)
