"""Pulled rows on GPUs of one host: the bits of one launch over the same rows, whenever copies and ranks are late."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.attention import attend, hopper_pull
from hetsched.kernels.put import counters
from hetsched.kernels.put.pull import pull_runs
from hetsched.layout.tokens import tokens_of
from hetsched.parallel import pull, station
from hetsched.parallel.context import ContextTask
from tests.dist.context_cases import ContextCase, MapKind
from tests.dist.context_work import task_of
from tests.gpu.test_context import check, run

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 1 or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)

FUZZ = (0, 1, 127, 128, 129, 1000)
HEADS = (((8, 8), 128), ((16, 2), 64), ((4, 1), 128))
LATE = 20_000_000
"""Cycles after which a kernel that waits for nothing is long over."""


def cases(cp: int) -> list[ContextCase]:
    """Every kind of map, one and several parts, documents that are cut and whole, with and without a window."""
    generator, result = np.random.default_rng(cp), []
    kinds: tuple[MapKind, ...] = ("planned", "zigzag", "random")
    for seed in range(9):
        lengths = (3000, *(int(n) for n in generator.choice(FUZZ, size=generator.integers(1, 5))))
        # kernels are compiled anew for other heads
        (heads, head_dim), window = HEADS[seed // 3], (None, None, 200)[(seed + seed // 3) % 3]
        case = ContextCase(lengths, cp, kinds[seed % 3], heads, window, torch.bfloat16, seed, forced="pull")
        result.append(replace(case, head_dim=head_dim, forced_back="pull"))
    return result


def one_document(cp: int, length: int) -> ContextCase:
    return ContextCase((length,), cp, "zigzag", (8, 8), dtype=torch.bfloat16, head_dim=128, forced="pull")


class Pulled:
    """A case's own rows on one rank, and what single launches give over the rows that it pulls."""

    def __init__(self, case: ContextCase, rank: int, group: dist.ProcessGroup) -> None:
        self.task: ContextTask = task_of(case, rank, device="cuda")
        self.group, self.whole = group, [x.cuda() for x in case.inputs()]
        self.tokens = [torch.from_numpy(tokens_of(case.token_map, r)).cuda() for r in range(case.cp)]
        self.q, self.k, self.v, self.dout = (x[self.tokens[rank]] for x in self.whole)
        self.expected = self._expected()

    def _expected(self) -> tuple[Tensor, ...]:
        _, k, v, dout = self.whole
        keys, queries = self.task.pulled, self.task.pulled_back
        staged_k, staged_v = (self._placed(x, keys.plan) for x in (k, v))
        out, lse = attend.forward_step(self.q, staged_k, staged_v, keys.attention)
        statistics = (lse, attend.row_delta(out, self.dout))
        dq, _, _ = attend.backward_step(self.dout, self.q, staged_k, staged_v, statistics, keys.attention)
        all_statistics = [self._gathered(x.T.contiguous()) for x in statistics]
        placed = [self._placed(x, queries.plan) for x in (dout, self.whole[0], *all_statistics)]
        more = (placed[2].T.contiguous(), placed[3].T.contiguous())
        _, dk, dv = attend.backward_step(placed[0], placed[1], self.k, self.v, more, queries.attention)
        return out, lse, dq, dk, dv

    def _gathered(self, own: Tensor) -> Tensor:
        """The rows of all ranks, by token."""
        parts: list[Any] = [None] * len(self.tokens)
        dist.all_gather_object(parts, own.cpu(), group=self.group)
        whole = own.new_zeros(sum(len(x) for x in self.tokens), *own.shape[1:])
        for tokens, part in zip(self.tokens, parts, strict=True):
            whole[tokens] = part.cuda()
        return whole

    def _placed(self, x: Tensor, plan: Any) -> Tensor:
        """Rows by token as the tasks number them: those of the stage, then own."""
        places, tokens = (torch.from_numpy(y).cuda() for y in (plan.places, plan.tokens))
        return x.new_zeros(plan.num_rows + len(self.q), *x.shape[1:]).index_copy_(0, places, x[tokens])

    def results(self, *, is_poisoned: bool = False) -> tuple[Tensor, ...]:
        """Output, lse, dq, dk and dv, pulled; the backward finds the forward's keys in the stage, or NaN."""
        out, lse = pull.forward(self.q, self.k, self.v, self.task, group=self.group)
        saved = (self.q, self.k, self.v, out, lse)
        if is_poisoned:
            self.poison()
        return out, lse, *pull.backward(self.dout, saved, self.task, group=self.group)

    def poison(self) -> None:
        """What the last call left in the stages becomes NaN."""
        self.meet()
        memory = pull._station(self.group)._memory
        if memory is not None:
            memory[0].fill_(255)
        self.meet()

    def meet(self) -> None:
        torch.cuda.synchronize()
        dist.barrier(self.group)
        torch.cuda.synchronize()

    def agrees(self, results: tuple[Tensor, ...]) -> list[bool]:
        return [torch.equal(a, b) for a, b in zip(results, self.expected, strict=True)]

    def is_as_expected(self) -> bool:
        return all(self.agrees(self.results()))


def late_copies(cycles: int) -> Any:
    """Copies that start late, on the stream that they are enqueued on."""
    original = station.pull_runs

    def late(*args: Any, **options: Any) -> None:
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        original(*args, **options)

    return mock.patch.object(station, "pull_runs", late)


def shifted(name: str, copies: int) -> Any:
    """A kernel that waits for so many copies more, or fewer."""
    original, place = getattr(hopper_pull, name), {"forward": 2, "query_gradient": 3}[name]

    def changed(*args: Any, **options: Any) -> Any:
        staged = args[place]
        arguments = [*args[:place], replace(staged, landed=staged.landed + copies), *args[place + 1 :]]
        return original(*arguments, **options)

    return mock.patch.object(hopper_pull, name, changed)


def lost_row() -> Any:
    """The first run of every pull lacks its last row."""

    def lacking(stages: Any, stage: Any, runs: Tensor, **options: Any) -> None:
        fewer = runs.clone()
        fewer[:1, 3] -= 1
        pull_runs(stages, stage, fewer, **options)

    return mock.patch.object(station, "pull_runs", lacking)


@contextlib.contextmanager
def no_wait_for_readers() -> Iterator[None]:
    """A rank packs while others still read what it packed last."""
    original = station.Station.open

    def hasty(self: station.Station, *args: Any) -> Any:
        with mock.patch.object(counters, "wait_for_counts"):
            return original(self, *args)

    with mock.patch.object(station.Station, "open", hasty):
        yield


def equal_bits(rank: int, group: dist.ProcessGroup) -> None:
    generator = random.Random(rank)
    for case in cases(group.size()):
        pulled = Pulled(case, rank, group)
        assert pulled.is_as_expected(), (case, pulled.agrees(pulled.results()))
        for _ in range(4):
            pulled.poison()
            torch.cuda._sleep(int(generator.random() * 4e6))  # type: ignore[no-untyped-call]
            with late_copies(int(generator.random() * 2e6) + 1):
                assert all(pulled.agrees(pulled.results(is_poisoned=True))), case
        # back to back, so that ranks meet in the middle of each other's calls
        results = [pulled.results() for _ in range(10)]
        assert all(all(pulled.agrees(result)) for result in results), case


def small_errors(rank: int, group: dist.ProcessGroup) -> None:
    for case in cases(group.size())[:6]:
        check(case, rank, group)


def mutants_are_seen(rank: int, group: dist.ProcessGroup) -> None:
    pulled = Pulled(one_document(group.size(), 8192), rank, group)
    assert pulled.is_as_expected()
    mutants = {
        "the forward does not wait": (shifted("forward", -1000), [0, 1]),
        "dq does not wait": (shifted("query_gradient", -1000), [2]),
        "dk and dv do not wait": (mock.patch.object(station.Station, "join"), [3, 4]),
        "a row is lost": (lost_row(), [0, 1, 2, 3, 4]),
    }
    for name, (mutant, wrong) in mutants.items():
        pulled.poison()
        with mutant, late_copies(LATE):
            agrees = pulled.agrees(pulled.results(is_poisoned=True))
        pulled.meet()
        assert not any(agrees[i] for i in wrong), (name, agrees)
    pulled.poison()
    assert pulled.is_as_expected()


def early_overwriting_is_seen(rank: int, group: dist.ProcessGroup) -> None:
    case = one_document(group.size(), 8192)
    first, second = (Pulled(replace(case, seed=seed), rank, group) for seed in (1, 2))

    def both() -> list[bool]:
        first.meet()
        with late_copies(LATE if rank == 0 else 1):
            one = pull.forward(first.q, first.k, first.v, first.task, group=group)
            two = pull.forward(second.q, second.k, second.v, second.task, group=group)
        first.meet()
        return [all(map(torch.equal, got, of.expected)) for got, of in ((one, first), (two, second))]

    assert both() == [True, True]
    with no_wait_for_readers():
        assert both()[0] == (rank != 0)
    assert both() == [True, True]


def lost_copies_are_told(rank: int, group: dist.ProcessGroup) -> None:
    pulled = Pulled(one_document(group.size(), 2048), rank, group)
    assert pulled.is_as_expected()
    # the counter goes on with the copies of queries, and never so far
    with shifted("query_gradient", 1000):
        pulled.results()
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="did not arrive"):
        pulled.results()


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_pulled_rows_give_the_bits_of_one_launch(cp: int) -> None:
    run(cp, equal_bits)


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_pulled_rows_have_the_errors_of_one_gpu(cp: int) -> None:
    run(cp, small_errors)


def test_kernels_that_do_not_wait_and_lost_rows_are_seen() -> None:
    run(min(4, torch.cuda.device_count()), mutants_are_seen)


def test_memory_that_is_written_while_others_read_it_is_seen() -> None:
    run(2, early_overwriting_is_seen)


def test_copies_that_do_not_land_are_told() -> None:
    run(2, lost_copies_are_told)
