"""Stages that break their contract, and ranks that do not agree: told at once, and with what to change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched import Batch, Engine, StageMeta
from hetsched.errors import DataError, HetschedError
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.contract import check_loss, check_rows
from hetsched.schedule.action import parse_action
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.test_lent_rows import HIDDEN, ROWS, Scores, Work, run

FORWARD = parse_action("llm:2F0")
SCALAR = torch.zeros((), requires_grad=True)
MADE = torch.zeros(3, 4, requires_grad=True)


NUM_ROWS = 3


def check(output: Any, *, is_loss: bool, needs_gradient: bool = True) -> None:
    if is_loss:
        check_loss(output, FORWARD, num_tokens=NUM_ROWS, needs_gradient=needs_gradient)
    else:
        check_rows(output, FORWARD, num_rows=NUM_ROWS, are_of_items=False, needs_gradient=needs_gradient)


ROWS_SAID = [
    (MADE[:2], r"a tensor of shape [2, 4]; return rows, [3, hidden]"),
    (MADE.flatten(), r"a tensor of shape [12]; return rows, [3, hidden]"),
    ((MADE, 1), r"(a tensor of shape [3, 4], an object of type int); return rows, [3, hidden]"),
    (None, r"an object of type NoneType; return rows, [3, hidden]"),
    (MADE.detach(), r"a tensor of shape [3, 4]; return rows that its rows and parameters made: what is detached"),
]
LOSS_SAID = [
    (SCALAR, r"a tensor of shape []; return (loss_sum, weight): a scalar tensor"),
    ((SCALAR,), r"(a tensor of shape []); return (loss_sum, weight)"),
    ((MADE, 3), r"(a tensor of shape [3, 4], an object of type int); return (loss_sum, weight)"),
    ((1.5, 3), r"(an object of type float, an object of type int); return (loss_sum, weight)"),
    ((SCALAR, 3, MADE, MADE), r"(a tensor of shape [], an object of type int, a tensor of shape [3, 4], a tensor of"),
    (
        (SCALAR.detach(), 3),
        r"(a tensor of shape [], an object of type int); return a loss that its rows and",
    ),
    ((SCALAR.detach(), torch.ones(())), r"(a tensor of shape [], a tensor of shape []); return a loss that its rows"),
]
THIRD = r"; return (loss_sum, weight), or after them a tensor of its tokens, [3, ...]"
THIRD_SAID = [
    ((SCALAR, 3, SCALAR), rf"(a tensor of shape [], an object of type int, a tensor of shape []){THIRD}"),
    ((SCALAR, 3, MADE[:2]), rf"(a tensor of shape [], an object of type int, a tensor of shape [2, 4]){THIRD}"),
    ((SCALAR, 3, {"correct": MADE}), rf"(a tensor of shape [], an object of type int, an object of type dict){THIRD}"),
]


@pytest.mark.parametrize(
    ("output", "said", "is_loss"),
    [(*each, is_loss) for is_loss, of in ((False, ROWS_SAID), (True, LOSS_SAID + THIRD_SAID)) for each in of],
)
def test_what_breaks_the_contract_is_told_with_what_to_return(output: Any, said: str, is_loss: bool) -> None:
    with pytest.raises(DataError, match=re.escape(f"stage 2 of module llm returned {said}")):
        check(output, is_loss=is_loss)


@pytest.mark.parametrize(
    ("output", "is_loss", "needs_gradient"),
    [
        (MADE, False, True),
        (MADE.detach(), False, False),
        ((SCALAR, 3), True, True),
        ((SCALAR, torch.ones(()), MADE), True, True),
        ((SCALAR, 3, MADE[:, 0]), True, True),
        ((SCALAR.detach(), 3), True, False),
        ((SCALAR.detach(), 0), True, True),
        ((SCALAR.detach(), torch.zeros(())), True, True),
    ],
)
def test_what_keeps_it_passes(output: Any, is_loss: bool, needs_gradient: bool) -> None:
    check(output, is_loss=is_loss, needs_gradient=needs_gradient)


def test_nothing_needs_a_gradient_where_there_is_none() -> None:
    check_rows(MADE[:0].detach(), FORWARD, num_rows=0, are_of_items=True, needs_gradient=True)
    with torch.no_grad():
        check(MADE.detach(), is_loss=False)
        check((SCALAR.detach(), 3), is_loss=True)


class Short(nn.Module):
    """Loses its last row."""

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        return rows[:-1]


class Detached(nn.Module):
    """Makes nothing of its parameter, or without one of its rows, which somebody behind it trains."""

    def __init__(self, *, is_frozen: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(HIDDEN, dtype=torch.float64), requires_grad=not is_frozen)

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        return (rows * self.scale).detach()


class DetachedScores(Scores):
    """A last stage whose loss is cut off from its rows."""

    def forward(self, rows: Tensor, meta: StageMeta) -> tuple[Tensor, ...]:
        return super().forward(rows.detach(), meta)


class Wide(nn.Module):
    """Returns rows twice as wide as the plan says."""

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        return rows.repeat(1, 2)


BROKEN = [
    (Wide(), rf"\[{ROWS}, {2 * HIDDEN}\], .* rows of {HIDDEN}; change the stage or `hidden` of module llm"),
    (Short(), rf"\[{ROWS - 1}, {HIDDEN}\]"),
    (Detached(is_frozen=False), "rows that its rows and parameters made"),
    (Detached(is_frozen=True), "rows that its rows and parameters made"),
    (DetachedScores(), "a loss that its rows and parameters made"),
]


@pytest.mark.parametrize("is_of_items", [False, True])
def test_only_where_rows_are_those_of_items_the_message_says_where_they_are_described(
    is_of_items: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "outgoing", lambda *_: ["llm->sink"] if is_of_items else [], raising=False)
    with pytest.raises(DataError, match=rf"return rows, \[{ROWS}, hidden\]") as raised:
        run("1RECV_F0 1F0", Short())
    assert str(raised.value).endswith("change the stage or Item.num_rows") == is_of_items


@pytest.mark.parametrize(("stage", "said"), BROKEN)
def test_a_stage_is_held_to_it_before_anything_is_sent(stage: nn.Module, said: str) -> None:
    with pytest.raises(DataError, match=f"stage 1 of module llm returned .*{said}"):
        run("1RECV_F0 1F0 1SEND_F0", stage)


class Faulty(torch.autograd.Function):
    """Raises in its backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ZeroDivisionError


class Raises(nn.Module):
    """Raises in its forward or its backward."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        if self._when == "forward":
            raise ZeroDivisionError
        return Faulty.apply(rows)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_an_error_in_a_stage_says_where_it_was(when: str) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run("1RECV_F0 1F0 1RECV_B0 1B0", Raises(when))
    assert raised.value.__notes__ == [f"in the {when} of stage 1 of module llm: microbatch 0, samples 5, 7"]


class Window(nn.Module):
    """Makes rows of its own for several microbatches at once, one too few."""

    def forward(self, rows: None, meta: StageMeta) -> Tensor:
        return torch.zeros(2 * ROWS - 1, HIDDEN, dtype=torch.float64)


def test_a_call_for_several_microbatches_is_held_to_the_rows_of_all() -> None:
    with pytest.raises(DataError, match=rf"stage 1 of module llm returned .*; return rows, \[{2 * ROWS}, hidden\]"):
        run("1F0-1", Window())


class Scaled(nn.Module):
    """Multiplies rows of the dtype that it expects by a parameter, and returns them in another."""

    def __init__(self, returned: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((HIDDEN,), 3.0, dtype=torch.float64))
        self._returned = returned

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        assert rows.dtype == torch.float64
        return (rows * self.scale).to(self._returned)


@pytest.mark.parametrize("returned", [torch.float32, torch.float64])
def test_rows_of_another_dtype_are_cast_for_the_next_stage_on_the_lane_as_for_another_rank(
    returned: torch.dtype,
) -> None:
    stages = Scaled(returned), Scaled(returned)
    transport, _ = run("1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0", *stages)
    forward, backward = transport.sent
    assert forward.dtype == backward.dtype == torch.float64
    assert forward.eq(9).all() and backward.eq(2 * 9).all()
    for stage in stages:
        assert stage.scale.grad is not None


COLOCATED = dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.pp = 2", world_size=2)


@dataclass
class Mistake:
    """What a rank does otherwise than it should."""

    make: Callable[[Plan], Engine]
    batch: Callable[[Plan], Any]


def first_samples(plan: Plan) -> Batch:
    return Batch.of(RaggedSource(plan.seed), range(8))


def usual(plan: Plan) -> Engine:
    return Engine(plan, builders(plan), timeout_s=30.0)


def with_odd_encoder(plan: Plan) -> Engine:
    """One replica starts from other weights than the other."""
    engine = usual(plan)
    if dist.get_rank() == 1:
        with torch.no_grad():
            list(engine.stages["vision", 0].parameters())[1][0] += 1e-3
    return engine


def other_samples(plan: Plan) -> Batch:
    rank = dist.get_rank()
    return Batch.of(RaggedSource(plan.seed), range(rank, rank + 8))


def samples_with_another_item(plan: Plan) -> Batch:
    """One image in place of another of the same size."""
    batch = first_samples(plan)
    place = next(i for i, sample in enumerate(batch.samples) if sample.placeholders)
    first, *others = batch.samples[place].placeholders
    other = replace(first, item=replace(first.item, key=first.item.key + dist.get_rank()))
    samples = list(batch.samples)
    samples[place] = replace(samples[place], placeholders=(other, *others))
    return replace(batch, samples=tuple(samples))


def without_a_plan(plan: Plan) -> Engine:
    return Engine("a.toml", builders(plan))  # type: ignore[arg-type]


def with_builders(**others: Any) -> Callable[[Plan], Engine]:
    return lambda plan: Engine(plan, {**builders(plan), **others})


def samples_of_another_weight(plan: Plan) -> Batch:
    batch = first_samples(plan)
    first, *others = batch.samples
    return replace(batch, samples=(replace(first, weight=first.weight + dist.get_rank()), *others))


MISTAKES = {
    "replicas": Mistake(with_odd_encoder, first_samples),
    "samples": Mistake(usual, other_samples),
    "items": Mistake(usual, samples_with_another_item),
    "weights": Mistake(usual, samples_of_another_weight),
    "no batch": Mistake(usual, lambda plan: [0, 1]),
    "no plan": Mistake(without_a_plan, first_samples),
    "no module": Mistake(with_builders(vision=lambda *_: None), first_samples),
    "another module": Mistake(with_builders(visoin=lambda *_: nn.Identity()), first_samples),
}
OTHER_BATCH = "DataError: rank 1 has another batch than rank 0: their first samples are"
SAID = {
    "replicas": r"JobError: embed\S+ of stage 0 of module vision differs between ranks 0, 1, which hold copies; build",
    "samples": rf"{OTHER_BATCH} \[1, 2, 3, 4\] and \[0, 1, 2, 3\]; give every rank the same samples",
    "items": rf"{OTHER_BATCH} \[0, 1, 2, 3\] and \[0, 1, 2, 3\]; .*described alike",
    "weights": rf"{OTHER_BATCH} \[0, 1, 2, 3\] and \[0, 1, 2, 3\]; .*described alike",
    "no batch": r"TypeError: a step takes a Batch, not list: Batch.of",
    "no plan": r"TypeError: an engine takes a Plan, not str: hetsched.load_plan",
    "no module": r"TypeError: the builder of module vision returned NoneType",
    "another module": r"PlanError: there is a builder for visoin, .*\n.*\n  fix: .*: vision, llm",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_ranks_that_do_not_agree_are_told_on_every_rank(ranks: Pool, mistake: str) -> None:
    for said in ranks.run(try_step, make_plan(**COLOCATED), mistake, num_ranks=2):
        assert re.match(SAID[mistake], said), said


def try_step(plan: Plan, mistake: str) -> str:
    doing = MISTAKES[mistake]
    try:
        doing.make(plan).step(doing.batch(plan))
    except (HetschedError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def test_an_engine_without_a_job_says_how_to_start_one() -> None:
    plan = make_plan(**COLOCATED)
    with pytest.raises(HetschedError, match=r"there is no job yet: start its ranks by hetsched\.launch"):
        Engine(plan, builders(plan))
