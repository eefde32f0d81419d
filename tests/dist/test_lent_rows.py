"""Rows in lent memory are copied wherever they would outlive it: handed on, sent, kept, or returned to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetsched.layout.rank_share import Piece, RankShare, outgoing
from hetsched.lower.rooms import LaneRooms
from hetsched.runtime.arriving import Placed
from hetsched.runtime.exchange import Channel, Exchange, Message, StepSetup, Transfer
from hetsched.runtime.executor import Executor, Move, StepResult
from hetsched.runtime.measure.recorder import Recorder
from hetsched.runtime.stage import StageMeta
from hetsched.schedule.action import Action, Kind, parse_action

HIDDEN, ROWS, ME, PEER = 4, 3, 0, 1
CPU = torch.device("cpu")
FORWARD, BACKWARD = (Channel(tag, HIDDEN, torch.float64, way) for tag, way in enumerate(("forward", "backward")))
IN = RankShare(receives={PEER: ((0, ROWS),)}, num_rows=ROWS, room_rows=ROWS)


class Lender:
    """A transport whose rows arrive in one arena; who gives a room back finds NaN there."""

    def __init__(self) -> None:
        self.arena = torch.zeros(2 * ROWS, HIDDEN, dtype=torch.float64)
        self.sent: list[Tensor] = []

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        return nullcontext()

    def room(self, transfer: Transfer, num_rows: int) -> Tensor:
        return self.arena[ROWS * transfer.channel.tag :][:num_rows].data

    def give_back(self, transfer: Transfer) -> None:
        self.room(transfer, ROWS).fill_(float("nan"))

    def lends(self, rows: Tensor) -> bool:
        return rows.untyped_storage().data_ptr() == self.arena.untyped_storage().data_ptr()

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        self.sent += [message.rows for message in messages.values()]

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Lender:
        for message in messages.values():
            message.rows.fill_(1.0 + transfer.channel.tag)
        return self

    def wait(self) -> None: ...

    def flush(self) -> None: ...


class Work:
    """One microbatch that comes from a peer and goes back to it."""

    divisor, dtype = 1, torch.float64

    def __init__(self, actions: Sequence[Action], *, is_last: bool = False) -> None:
        self._is_last = is_last
        channels = {Kind.RECV_F: FORWARD, Kind.RECV_B: BACKWARD}
        self.signals_to: dict[int, Any] = {}
        self.signals_from: dict[int, Any] = {}
        self.given_back = {
            place: [Transfer(channels[arrival.kind], arrival.microbatch) for arrival in arrivals]
            for place, arrivals in LaneRooms.of(actions).ends.items()
        }

    def __getattr__(self, name: str) -> Any:
        return {"recomputes": lambda *_: False, "needs_input_gradient": lambda *_: True}.get(name, lambda *_: ())

    def num_tokens(self, module: str, microbatch: int) -> int:
        return ROWS

    def contents(self, module: str, microbatch: int) -> str:
        return "samples 5, 7"

    def num_rows(self, module: str, stage: int, microbatch: int) -> int | None:
        return None if self._is_last else ROWS

    def meta(self, *_: Any) -> StageMeta:
        return StageMeta(0, torch.tensor([0, ROWS]), ROWS, torch.arange(ROWS), {}, {})

    def move(self, action: Any, microbatch: int) -> Move:
        channel = FORWARD if action.kind in (Kind.RECV_F, Kind.SEND_F) else BACKWARD
        out = RankShare(sends={PEER: outgoing([Piece(0, 0, ROWS)])})
        return Move(Transfer(channel, 0), IN if action.kind in (Kind.RECV_F, Kind.RECV_B) else out)


class Same(nn.Module):
    """Returns what it was given, or that seen otherwise."""

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        return rows.view(ROWS, HIDDEN)


class Scores(nn.Module):
    """A last stage in eval mode whose loss, weight and outputs are its inputs."""

    def forward(self, rows: Tensor, meta: StageMeta) -> tuple[Tensor, ...]:
        return rows[0, 0], rows[0, 1], rows


class Added(nn.Module):
    """A parameter whose gradient is a part of what the backward is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, HIDDEN, dtype=torch.float64))

    def forward(self, rows: Tensor, meta: StageMeta) -> Tensor:
        return torch.cat([self.tokens, rows[1:] * 2])


def run(texts: str, *stages: nn.Module, is_training: bool = True) -> tuple[Lender, StepResult]:
    transport = Lender()
    exchange, recorder = Exchange(ME, transport, device=CPU), Recorder()
    named = {("llm", stage): module for stage, module in enumerate(stages, 1)}
    executor = Executor(named, exchange=exchange, recorder=recorder, reduce=lambda *_: None)
    recorder.begin_step()
    actions = [parse_action(f"llm:{text}") for text in texts.split()]
    work: Any = Work(actions, is_last=isinstance(stages[-1], Scores))
    result = executor.run(actions, work, is_training=is_training, meanwhile={})
    return transport, result


def test_rows_that_a_stage_passes_on_are_sent_from_memory_of_their_own() -> None:
    transport, _ = run("1RECV_F0 1F0 1SEND_F0", Same())
    assert transport.sent[0].eq(1).all()


def test_rows_that_a_stage_passes_to_the_next_on_its_lane_are_its_own() -> None:
    transport, _ = run("1RECV_F0 1F0 2F0 2SEND_F0", Same(), Same())
    assert transport.sent[0].eq(1).all()


def test_what_a_last_stage_returns_of_its_rows_outlives_the_step() -> None:
    _, result = run("1RECV_F0 1F0", Scores(), is_training=False)
    (scores,) = result.extras["llm", 0]
    assert scores.shape == (ROWS, HIDDEN) and scores.eq(1).all()
    assert (result.loss_sum, result.weight) == (1, 1)


@pytest.mark.parametrize(
    "test",
    [
        test_rows_that_a_stage_passes_on_are_sent_from_memory_of_their_own,
        test_rows_that_a_stage_passes_to_the_next_on_its_lane_are_its_own,
        test_what_a_last_stage_returns_of_its_rows_outlives_the_step,
    ],
)
def test_lent_rows_that_nobody_copies_are_noticed(test: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exchange, "lasting", lambda self, rows: rows)
    with pytest.raises(AssertionError):
        test()


@pytest.mark.parametrize("is_lent", [False, True], ids=["copied", "mutant: lent"])
def test_a_gradient_that_autograd_keeps_outlives_the_step(is_lent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_lent:
        monkeypatch.setattr(Placed, "take", Placed.wait)
    stage = Added()
    run("1RECV_F0 1F0 1RECV_B0 1B0", stage)
    assert stage.tokens.grad is not None
    assert bool(stage.tokens.grad.eq(2).all()) == (not is_lent)
