"""Runtimes that are wrong on purpose: the parity test has to notice each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from hetsched.parallel import data
from hetsched.parallel.copies import Copies
from hetsched.runtime import engine
from hetsched.runtime.arriving import Arriving, Summed
from hetsched.runtime.exchange import Exchange
from hetsched.runtime.executor import Executor
from hetsched.schedule.action import Kind


def apply_mutant(name: str | None) -> Callable[[], None]:
    """Break the runtime in the named way; returns what mends it."""
    if name is None:
        return lambda: None
    patch = MUTANTS[name]()
    patch.start()
    return patch.stop


def _averaged_over_dp() -> Any:
    def averaged(parameters: Sequence[torch.nn.Parameter], copies: Copies | None) -> None:
        data.sum_gradients(parameters, copies)
        for p in parameters:
            if copies is not None and p.grad is not None:
                p.grad /= copies.num_ranks

    return mock.patch.object(engine, "sum_gradients", averaged)


def _loss_divided_per_microbatch() -> Any:
    original = Executor._loss

    def divided(self: Executor, a: Any, microbatch: int, output: Any) -> Any:
        loss_sum, gradient = original(self, a, microbatch, output)
        return loss_sum, gradient if gradient is None else 1 / output[1] / 4 * torch.ones_like(gradient)

    return mock.patch.object(Executor, "_loss", divided)


def _dropped_row() -> Any:
    original = Exchange.receive
    return mock.patch.object(Exchange, "receive", lambda self, *what: _Dropping(original(self, *what)))


class _Dropping:
    """Arriving rows without the first."""

    def __init__(self, arriving: Arriving) -> None:
        self._arriving = arriving

    def wait(self) -> torch.Tensor:
        return self._without_first(self._arriving.wait())

    def take(self) -> torch.Tensor:
        return self._without_first(self._arriving.take())

    @staticmethod
    def _without_first(rows: torch.Tensor) -> torch.Tensor:
        rows[:1] = 0
        return rows


def _no_sum_in_backward() -> Any:
    original = Summed.wait

    def last_wins(self: Summed) -> torch.Tensor:
        seen: set[int] = set()
        kept = []
        for of in reversed([of for addends in self._share.addends or () for of in addends]):
            rows = set(range(of.to_row, of.to_row + of.num_rows))
            if not rows & seen:
                kept.append(of)
            seen |= rows
        self._share = replace(self._share, addends=(tuple(kept),))
        return original(self)

    return mock.patch.object(Summed, "wait", last_wins)


def _swapped_receives() -> Any:
    original = Executor.run

    def swapped(self: Executor, actions: Any, *args: Any, **kwargs: Any) -> Any:
        actions = list(actions)
        first = next((a for a in actions if a.kind is Kind.RECV_F and a.first == 0 and "->" not in a.module), None)
        if first is not None:
            place = actions.index(first)
            second = next(a for a in actions[place + 1 :] if (a.kind, a.module) == (first.kind, first.module))
            actions.remove(second)
            actions.insert(place, second)
        return original(self, actions, *args, **kwargs)

    return mock.patch.object(Executor, "run", swapped)


MUTANTS: dict[str, Callable[[], Any]] = {
    "gradients averaged over dp": _averaged_over_dp,
    "loss divided per microbatch": _loss_divided_per_microbatch,
    "a dropped row": _dropped_row,
    "no sum in the backward": _no_sum_in_backward,
    "two swapped receives": _swapped_receives,
}
