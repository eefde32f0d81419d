"""Sums of gradients over copies of a stage, against sums parameter by parameter."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched.parallel import nccl_calls
from hetsched.parallel.copies import Copies, NcclCopies, TorchCopies, copies_of
from hetsched.parallel.data import sum_gradients
from hetsched.parallel.nccl_calls import Communicator
from tests.dist.pool import Pool

NUM_RANKS = 3
CPU = torch.device("cpu")
ERRORS = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""For bfloat16 half of a unit in the last place, of what was added up in float32."""
SHAPES = [(5, 3), (7,), (1,), (0, 4), (2, 3, 5)]


class Addressed:
    """What NCCL's communicator does, by gloo and in the memory of a CPU; of the group of all ranks."""

    def all_to_all(self, sent: int, received: int, part_bytes: int, stream: int, *, num_ranks: int) -> None:
        of_all = num_ranks * part_bytes
        dist.all_to_all_single(values_at(received, of_all), values_at(sent, of_all))

    def all_gather(self, part: int, whole: int, part_bytes: int, stream: int) -> None:
        parts = list(values_at(whole, dist.get_world_size() * part_bytes).chunk(dist.get_world_size()))
        dist.all_gather(parts, values_at(part, part_bytes))

    def all_reduce(self, values: int, num_values: int, dtype: torch.dtype, stream: int) -> None:
        dist.all_reduce(values_at(values, num_values, dtype))


def values_at(address: int, num_values: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    memory = (ctypes.c_char * (num_values * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)


@contextmanager
def nccl_copies() -> Iterator[Copies]:
    """Those that call NCCL, with gloo in its place."""
    with (
        mock.patch.object(Communicator, "of", return_value=Addressed()),
        mock.patch.object(torch.cuda, "current_stream", return_value=SimpleNamespace(cuda_stream=0)),
    ):
        assert dist.group.WORLD is not None
        yield NcclCopies(dist.group.WORLD, device=CPU)


@contextmanager
def torch_copies() -> Iterator[Copies]:
    found = copies_of(dist.group.WORLD, device=CPU)
    assert isinstance(found, TorchCopies)
    yield found


MAKERS = {"torch": torch_copies, "nccl": nccl_copies}


def stage_of(dtypes: list[torch.dtype]) -> nn.Module:
    """Parameters of odd sizes, of which one is shared and one frozen; the gradient of the second last has gaps."""
    stage = nn.Module()
    for number, shape in enumerate(SHAPES):
        dtype = dtypes[number % len(dtypes)]
        stage.register_parameter(f"of{number}", nn.Parameter(torch.zeros(shape, dtype=dtype)))
    stage.strided = nn.Parameter(torch.zeros(4, 6, dtype=dtypes[0]).t())
    stage.frozen = nn.Parameter(torch.zeros(9, dtype=dtypes[0]), requires_grad=False)
    stage.again = stage.of1
    return stage


def gradient_of(shape: torch.Size, dtype: torch.dtype, *, rank: int, number: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(100 * rank + number), dtype=torch.float64)
    return made.to(dtype)


def summed(maker: str, dtypes: list[torch.dtype], idle: int | None) -> list[tuple[Tensor, bool]]:
    """Of each trained parameter its gradient, and whether that is the tensor that it was before.

    Args:
        maker: of the copies.
        dtypes: of the parameters, in turn.
        idle: a rank whose odd parameters have no gradient.
    """
    stage, rank = stage_of(dtypes), dist.get_rank()
    trained = [p for p in stage.parameters() if p.requires_grad]
    for number, p in enumerate(trained):
        if rank != idle or number % 2 == 0:
            grad = torch.empty_like(p)
            p.grad = grad.copy_(gradient_of(p.shape, p.dtype, rank=rank, number=number))
    before = [p.grad for p in trained]
    with MAKERS[maker]() as copies:
        sum_gradients(stage.parameters(), copies)
    assert stage.frozen.grad is None
    return [(p.grad, was is None or p.grad is was) for p, was in zip(trained, before, strict=True)]


def expected(found: Tensor, number: int, idle: int | None) -> Tensor:
    """The float64 sum over ranks, of what each has in the parameter's dtype."""
    parts = [
        gradient_of(found.shape, found.dtype, rank=rank, number=number).double()
        for rank in range(NUM_RANKS)
        if rank != idle or number % 2 == 0
    ]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("idle", [None, 1])
@pytest.mark.parametrize(
    "dtypes",
    [[torch.float64], [torch.float32], [torch.bfloat16], [torch.bfloat16, torch.float32]],
    ids=["float64", "float32", "bfloat16", "mixed"],
)
def test_every_rank_has_the_sum_in_the_tensor_that_it_had(
    ranks: Pool, maker: str, dtypes: list[torch.dtype], idle: int | None
) -> None:
    by_rank = ranks.run(summed, maker, dtypes, idle, num_ranks=NUM_RANKS)
    for of_rank in by_rank:
        assert len(of_rank) == len(SHAPES) + 1
        for number, ((found, is_same), (first, _)) in enumerate(zip(of_rank, by_rank[0], strict=True)):
            error = ERRORS[found.dtype]
            torch.testing.assert_close(found.double(), expected(found, number, idle), rtol=error, atol=error)
            assert is_same and torch.equal(found, first)


def test_bfloat16_is_added_up_in_float32(ranks: Pool) -> None:
    """In bfloat16, 256 + 1 is 256, whichever rank has the 256."""
    for found in ranks.run(small_beside_large, num_ranks=NUM_RANKS):
        assert found.tolist() == [258.0] * NUM_RANKS


def small_beside_large() -> Tensor:
    return sum_of([256.0 if rank == dist.get_rank() else 1.0 for rank in range(NUM_RANKS)], dist.group.WORLD)


def sum_of(values: list[float], group: dist.ProcessGroup | None) -> Tensor:
    """A parameter's gradient, once it was summed; in bfloat16 before."""
    stage = nn.ParameterList([torch.zeros(len(values), dtype=torch.bfloat16)])
    stage[0].grad = torch.tensor(values).to(torch.bfloat16)
    sum_gradients(stage.parameters(), copies_of(group, device=CPU))
    assert stage[0].grad is not None
    return stage[0].grad.float()


@pytest.mark.parametrize(
    ("backend", "reason", "kind"),
    [("nccl", None, NcclCopies), ("nccl", "gone", TorchCopies), ("gloo", None, TorchCopies)],
)
def test_nccl_is_called_where_it_is_the_groups_and_can_be(
    backend: str, reason: str | None, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_device = {CPU: SimpleNamespace(name=lambda: backend)}
    group: Any = SimpleNamespace(_get_backend=of_device.get, size=lambda: 2)
    monkeypatch.setattr(nccl_calls, "missing", lambda: reason)
    monkeypatch.setattr(Communicator, "of", lambda group, device: Addressed())
    assert isinstance(copies_of(group, device=CPU), kind)


def test_only_the_ranks_of_the_group_are_summed(ranks: Pool) -> None:
    first, second, third = ranks.run(two_of_three, num_ranks=3)
    assert first.tolist() == third.tolist() == [4.0, 2.0]
    assert second.tolist() == [2.0, 2.0]


def two_of_three() -> Tensor:
    """Ranks 0 and 2 are one group, rank 1 is another."""
    pair, alone = dist.new_group([0, 2]), dist.new_group([1])
    mine = alone if dist.get_rank() == 1 else pair
    return sum_of([dist.get_rank() + 1.0, 1.0] if dist.get_rank() != 1 else [2.0, 2.0], mine)


def test_without_copies_what_has_no_gradient_has_zeros() -> None:
    stage = stage_of([torch.float32])
    stage.of1.grad = torch.ones(7)
    sum_gradients(stage.parameters(), None)
    assert stage.of1.grad.tolist() == [1.0] * 7
    assert torch.equal(stage.strided.grad, torch.zeros(6, 4))
    assert stage.of2.grad.tolist() == [0.0]
    assert stage.frozen.grad is None
