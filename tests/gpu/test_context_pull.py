"""Pulled keys on GPUs of one host: the bits of one launch over the same keys, whenever copies and ranks are late."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.attention import attend, hopper_pull
from hetsched.kernels.put.pull import pull_runs
from hetsched.layout.tokens import tokens_of
from hetsched.parallel import pull
from hetsched.parallel.context import ContextTask
from tests.dist.context_cases import ContextCase, MapKind
from tests.dist.context_work import task_of
from tests.gpu.test_context import check, run

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or torch.cuda.get_device_capability() != (9, 0), reason="needs two Hopper GPUs"
)

FUZZ = (0, 1, 127, 128, 129, 1000)
HEADS = (((8, 8), 128), ((16, 2), 64), ((4, 1), 128))


def cases(cp: int) -> list[ContextCase]:
    """Every kind of map without empty ranks, one and several parts, with and without a window."""
    generator, result = np.random.default_rng(cp), []
    kinds: tuple[MapKind, ...] = ("planned", "zigzag", "random")
    for seed in range(9):
        lengths = (3000, *(int(n) for n in generator.choice(FUZZ, size=generator.integers(0, 5))))
        # kernels are compiled anew for other heads
        (heads, head_dim), window = HEADS[seed // 3], (None, None, 200)[(seed + seed // 3) % 3]
        case = ContextCase(lengths, cp, kinds[seed % 3], heads, window, torch.bfloat16, seed, forced="pull")
        result.append(replace(case, head_dim=head_dim))
    return result


class Pulled:
    """A case's own rows on one rank, and what one launch gives over the keys that it pulls."""

    def __init__(self, case: ContextCase, rank: int, group: dist.ProcessGroup) -> None:
        self.task: ContextTask = task_of(case, rank, device="cuda")
        self.group, inputs = group, [x.cuda() for x in case.inputs()[:3]]
        own = torch.from_numpy(tokens_of(case.token_map, rank)).cuda()
        self.q, self.k, self.v = (x[own] for x in inputs)
        plan = self.task.pulled.plan
        places, tokens = (torch.from_numpy(x).cuda() for x in (plan.places, plan.tokens))
        keys = [x.new_zeros(plan.num_rows, *x.shape[1:]).index_copy_(0, places, x[tokens]) for x in inputs[1:]]
        self.expected = attend.forward_step(self.q, keys[0], keys[1], self.task.pulled.attention)

    def forward(self) -> tuple[Tensor, Tensor]:
        return pull.forward(self.q, self.k, self.v, self.task, group=self.group)

    def poison(self) -> None:
        """What the last call left in the stages becomes NaN."""
        torch.cuda.synchronize()
        dist.barrier(self.group)
        for stages in pull._station(self.group)._stages.values():
            if stages[0].dtype == torch.bfloat16:
                stages[self.task.rank].fill_(torch.nan)
        torch.cuda.synchronize()
        dist.barrier(self.group)

    def is_as_expected(self) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.forward(), self.expected, strict=True))


def late_copies(cycles: int) -> Any:
    """Copies that start late, on the stream that they are enqueued on."""

    def late(*args: Any, **options: Any) -> None:
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        pull_runs(*args, **options)

    return mock.patch.object(pull, "pull_runs", late)


def shifted(copies: int) -> Any:
    """A kernel that waits for so many copies more, or fewer."""
    original = hopper_pull.forward

    def changed(q: Tensor, staged: hopper_pull.Staged, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return original(q, replace(staged, landed=staged.landed + copies), *args, **options)

    return mock.patch.object(hopper_pull, "forward", changed)


def equal_bits(rank: int, group: dist.ProcessGroup) -> None:
    generator = random.Random(rank)
    for case in cases(group.size()):
        pulled = Pulled(case, rank, group)
        assert pulled.is_as_expected(), case
        for _ in range(5):
            pulled.poison()
            torch.cuda._sleep(int(generator.random() * 4e6))  # type: ignore[no-untyped-call]
            with late_copies(int(generator.random() * 2e6) + 1):
                assert pulled.is_as_expected(), case
        # back to back, so that ranks meet in the middle of each other's calls
        results = [pulled.forward() for _ in range(10)]
        assert all(torch.equal(x, y) for result in results for x, y in zip(result, pulled.expected, strict=True)), case


def small_errors(rank: int, group: dist.ProcessGroup) -> None:
    for case in cases(group.size())[:6]:
        check(case, rank, group)


def no_wait_is_seen(rank: int, group: dist.ProcessGroup) -> None:
    case = ContextCase((8192,), group.size(), "zigzag", (8, 8), dtype=torch.bfloat16, head_dim=128, forced="pull")
    pulled = Pulled(case, rank, group)
    assert pulled.is_as_expected()
    pulled.poison()

    with late_copies(20_000_000), shifted(-1000):
        assert not pulled.is_as_expected()


def lost_copies_are_told(rank: int, group: dist.ProcessGroup) -> None:
    case = ContextCase((2048,), group.size(), "zigzag", (8, 8), dtype=torch.bfloat16, head_dim=128, forced="pull")
    pulled = Pulled(case, rank, group)
    assert pulled.is_as_expected()
    with shifted(1):
        pulled.forward()
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="did not arrive"):
        pulled.forward()


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_pulled_keys_give_the_bits_of_one_launch(cp: int) -> None:
    run(cp, equal_bits)


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_pulled_keys_have_the_errors_of_one_gpu(cp: int) -> None:
    run(cp, small_errors)


def test_a_kernel_that_does_not_wait_is_seen() -> None:
    run(2, no_wait_is_seen)


def test_copies_that_do_not_land_are_told() -> None:
    run(2, lost_copies_are_told)
