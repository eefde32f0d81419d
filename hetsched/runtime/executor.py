"""Interprets a lowered program on one rank: what each kind of action does with autograd and the exchange.

It decides nothing. What crosses ranks is detached: received rows are leaves, and their ``.grad`` is sent by an
action of its own, so no autograd graph leaves its stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hetsched.errors import DataError
from hetsched.layout.rank_share import RankShare
from hetsched.lower.lifetime import last_uses
from hetsched.runtime.arriving import Arriving
from hetsched.runtime.contract import check_loss, check_rows
from hetsched.runtime.exchange import Exchange, Transfer
from hetsched.runtime.losses import Losses
from hetsched.runtime.measure.recorder import Recorder
from hetsched.runtime.parameters import own_parameters
from hetsched.runtime.stage import BoundaryRows, StageMeta
from hetsched.runtime.weight_gradient import WeightGradients
from hetsched.schedule.action import Action, Kind

Meanwhile = Callable[[], None]
_WORK = {Kind.F: "forward", Kind.B: "backward", Kind.I: "input backward", Kind.W: "weight backward"}
"""What people call the actions in which a stage's own code runs."""


class StepWork(Protocol):
    """What the executor asks about one step on this rank.

    Attributes:
        divisor: weight of the global batch.
        dtype: of the rows between stages.
        signals_to: by place in the list, whom an encoder's backward tells that it has given up its state.
        signals_from: by place, how many signals of which ranks an encoder's forward awaits.
        given_back: by place, whose rows nothing reads after that action, where rows are lent.
    """

    divisor: int
    dtype: torch.dtype
    signals_to: Mapping[int, Sequence[tuple[Transfer, Collection[int]]]]
    signals_from: Mapping[int, Sequence[tuple[Transfer, Mapping[int, int]]]]
    given_back: Mapping[int, Sequence[Transfer]]

    def num_tokens(self, module: str, microbatch: int) -> int:
        """Tokens of this rank's share; 0 where it has none."""

    def contents(self, module: str, microbatch: int) -> str:
        """The samples or items of this rank's share, for messages to people."""

    def num_rows(self, module: str, stage: int, microbatch: int) -> int | None:
        """Rows that a stage makes of this rank's share; None where it makes a loss."""

    def meta(
        self, module: str, stage: int, microbatches: Sequence[int], boundary: Mapping[str, BoundaryRows]
    ) -> StageMeta:
        """The meta of one call of a stage."""

    def recomputes(self, module: str, microbatch: int) -> bool:
        """Whether the forward keeps only its output, and runs again in the backward."""

    def move(self, action: Action, microbatch: int) -> Move:
        """What a transfer moves."""

    def boundary_index(self, edge: str, microbatch: int) -> Tensor: ...

    def no_rows(self, edge: str) -> Tensor:
        """``[0, hidden]`` of an edge."""

    def incoming(self, module: str, stage: int) -> Iterable[str]:
        """Names of the edges that enter a stage."""

    def outgoing(self, module: str, stage: int) -> Sequence[str]:
        """Names of the edges that leave a stage."""

    def needs_input_gradient(self, module_or_edge: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Move:
    """One microbatch of one edge in one direction, and this rank's share of it."""

    transfer: Transfer
    share: RankShare


@dataclass
class StepResult:
    """What the last stages on this rank returned.

    Args:
        loss_sum: sum of the losses, not divided; a float64 scalar.
        weight: what the stages counted as their weight.
        extras: ``(module, microbatch)`` -> what a stage in eval mode returned after them.
    """

    loss_sum: Tensor
    weight: Tensor
    extras: dict[tuple[str, int], tuple[Any, ...]]


@dataclass(slots=True)
class _Live:
    """What a stage keeps of a microbatch between its forward and its backward; the gradient is that of a loss."""

    rows: Tensor | None
    boundary: dict[str, Tensor]
    output: Tensor | None
    gradient: Tensor | None = None


class Executor:
    """Runs programs on the stages of one rank.

    Args:
        stages: ``(module, stage)`` -> the stage's nn.Module.
        reduce: ``(module, parameters)`` sums the gradients of a stage's parameters over its copies.
        deferring: modules whose programs have I and W in place of B.

    Attributes:
        parameters: of each stage; one that stages share is the first one's alone.
    """

    def __init__(
        self,
        stages: Mapping[tuple[str, int], nn.Module],
        *,
        exchange: Exchange,
        recorder: Recorder,
        reduce: Callable[[str, Sequence[nn.Parameter]], None],
        deferring: Collection[str] = (),
    ) -> None:
        self._stages, self._exchange, self._recorder = stages, exchange, recorder
        self._reduce = reduce
        self.look()
        self._deferred = {key: WeightGradients(stage) for key, stage in stages.items() if key[0] in deferring}
        self._do = {
            Kind.F: self._forward,
            Kind.B: self._backward,
            Kind.I: self._input_backward,
            Kind.W: self._weight_backward,
            Kind.OVERLAP_F_B: self._overlap,
            Kind.SEND_F: self._send_forward,
            Kind.RECV_F: self._receive,
            Kind.SEND_B: self._send_backward,
            Kind.RECV_B: self._receive,
            Kind.REDUCE_GRAD: self._reduce_gradients,
        }

    def look(self) -> None:
        """Take the stages' parameters as they are now; in an action a walk would hold the host for 100 us and more."""
        self.parameters = {key: list(named.values()) for key, named in own_parameters(self._stages).items()}
        self._is_trained = {key: any(p.requires_grad for p in of.parameters()) for key, of in self._stages.items()}

    def run(
        self, actions: Sequence[Action], work: StepWork, *, is_training: bool, meanwhile: Mapping[int, Meanwhile]
    ) -> StepResult:
        """Run this rank's list in order; gradients are added to the parameters' ``.grad``.

        Args:
            actions: the list.
            work: what it is about.
            is_training: False for forwards alone.
            meanwhile: what else the host does, by the number of actions that were begun before.
        """
        self._work = work
        self._live: dict[tuple[str, int, int], _Live] = {}
        self._arriving: dict[tuple[str, Kind, int, int], Arriving] = {}
        self._losses = Losses(work.divisor)
        self._extras: dict[tuple[str, int], tuple[Any, ...]] = {}
        done_with = last_uses(actions)
        with torch.set_grad_enabled(is_training):
            for place, action in enumerate(actions):
                if place in meanwhile:
                    self._recorder.pause(meanwhile[place])
                with self._recorder.action(action):
                    for transfer, counts in work.signals_from.get(place, ()):
                        self._exchange.await_signals(transfer, counts)
                    self._perform(action)
                # After the record, so that who was waiting starts after its end in a measured timeline too.
                for transfer, peers in work.signals_to.get(place, ()):
                    self._exchange.signal(transfer, peers)
                for key in done_with.get(place, ()):
                    self._live.pop(key, None)
                for transfer in work.given_back.get(place, ()):
                    self._exchange.give_back(transfer)
        if len(actions) in meanwhile:
            meanwhile[len(actions)]()
        self._exchange.flush()
        assert not self._arriving, f"received and never used: {list(self._arriving)}"
        return StepResult(*self._losses.totals(), self._extras)

    def _perform(self, a: Action) -> None:
        try:
            self._do[a.kind](a)
        except Exception as error:
            if a.kind in _WORK:
                each = (f"microbatch {m}, {self._work.contents(a.module, m)}" for m in a.microbatches)
                error.add_note(f"in the {_WORK[a.kind]} of stage {a.stage} of module {a.module}: {'; '.join(each)}")
            raise

    def _forward(self, a: Action) -> None:
        if len(a.microbatches) > 1:
            self._forward_window(a)
        else:
            self._forward_one(a, a.microbatches[0])

    def _forward_one(self, a: Action, m: int) -> None:
        rows = self._from_neighbor(a, Kind.RECV_F, m)
        entering = {
            edge: self._arrived(edge, Kind.RECV_F, a.stage, m) for edge in self._work.incoming(a.module, a.stage)
        }
        if self._work.num_tokens(a.module, m) == 0:
            return
        if rows is not None and torch.is_grad_enabled():
            rows.requires_grad_(self._work.needs_input_gradient(a.module))
        leaves, boundary = {}, {}
        for edge, arrived in entering.items():
            # Where no sample has an item nothing is sent.
            leaf = self._work.no_rows(edge) if arrived is None else arrived
            leaf.requires_grad_(torch.is_grad_enabled() and self._work.needs_input_gradient(edge))
            boundary[edge.split("->")[0]] = BoundaryRows(leaf, self._work.boundary_index(edge, m))
            leaves[edge] = leaf
        output = self._call(a, rows, self._work.meta(a.module, a.stage, [m], boundary))
        given, gradient = [x for x in (rows, *leaves.values()) if x is not None], None
        num_rows = self._work.num_rows(a.module, a.stage, m)
        if num_rows is None:
            num_tokens = self._work.num_tokens(a.module, m)
            check_loss(output, a, num_tokens=num_tokens, needs_gradient=self._needs_gradient(a, given))
            output, gradient = self._loss(a, m, output)
        else:
            self._check_rows(a, output, num_rows, given)
        self._live[a.module, a.stage, m] = _Live(rows, leaves, output, gradient)

    def _forward_window(self, a: Action) -> None:
        """An encoder's forward of several microbatches at once: one call over all of their items."""
        present = [m for m in a.microbatches if self._work.num_tokens(a.module, m)]
        if not present:
            return
        output = self._call(a, None, self._work.meta(a.module, a.stage, present, {}))
        sizes = [self._work.num_rows(a.module, a.stage, m) or 0 for m in present]
        self._check_rows(a, output, sum(sizes), [])
        for m, rows in zip(present, output.split(sizes), strict=True):
            self._live[a.module, a.stage, m] = _Live(None, {}, rows)

    def _call(self, a: Action, rows: Tensor | None, meta: StageMeta) -> Any:
        stage = self._stages[a.module, a.stage]
        with self._recorder.working():
            if torch.is_grad_enabled() and all(self._work.recomputes(a.module, m) for m in a.microbatches):
                output = checkpoint(stage, rows, meta, use_reentrant=False)
            else:
                output = stage(rows, meta)
            # Before they are sent or handed on, so that the next stage is given the same wherever it is.
            if isinstance(output, Tensor) and output.dtype != self._work.dtype:
                output = output.to(self._work.dtype)
            return output

    def _check_rows(self, a: Action, output: Any, num_rows: int, given: Sequence[Tensor]) -> None:
        are_of_items, needs_gradient = bool(self._work.outgoing(a.module, a.stage)), self._needs_gradient(a, given)
        check_rows(output, a, num_rows=num_rows, are_of_items=are_of_items, needs_gradient=needs_gradient)

    def _needs_gradient(self, a: Action, given: Sequence[Tensor]) -> bool:
        """Whether the stage trains, or the rows that it is given lead to one that does.

        What trains may be for rows of boundaries alone, so a microbatch that lacks them asks for nothing.
        """
        is_whole = all(map(len, given))
        return (is_whole and self._is_trained[a.module, a.stage]) or any(x.requires_grad and len(x) for x in given)

    def _loss(self, a: Action, microbatch: int, output: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        """The loss of a microbatch, and its gradient."""
        loss_sum, weight, *extras = (self._exchange.lasting(x) if isinstance(x, Tensor) else x for x in output)
        self._losses.add(loss_sum, weight)
        if extras:
            self._extras[a.module, microbatch] = tuple(extras)
        return loss_sum, self._losses.gradient_of(loss_sum)

    def _backward(self, a: Action) -> None:
        outputs, gradients = [], []
        for m in a.microbatches:
            gradient = self._output_gradient(a, m)
            live = self._live.get((a.module, a.stage, m))
            if live is not None and live.output is not None and live.output.requires_grad:
                outputs.append(live.output)
                gradients.append(live.gradient if gradient is None else gradient)
                live.output = None
        if outputs:
            with self._recorder.working():
                torch.autograd.backward(outputs, gradients)
                # What the stage made for its backward ends here, not after it.
                outputs.clear()

    def _input_backward(self, a: Action) -> None:
        deferred = self._deferred[a.module, a.stage]
        deferred.begin()
        self._backward(a)
        deferred.end(a.microbatches[0])

    def _weight_backward(self, a: Action) -> None:
        with self._recorder.working():
            for m in a.microbatches:
                self._deferred[a.module, a.stage].multiply(m)

    def _overlap(self, a: Action) -> None:
        for part in a.parts:
            self._perform(part)

    def _output_gradient(self, a: Action, m: int) -> Tensor | None:
        """The sum of what the next stage and every boundary sent back; None at the loss."""
        parts = [self._from_neighbor(a, Kind.RECV_B, m)]
        parts += [self._arrived(edge, Kind.RECV_B, a.stage, m) for edge in self._work.outgoing(a.module, a.stage)]
        present = [part for part in parts if part is not None]
        return sum(present[1:], start=present[0]) if present else None

    def _send_forward(self, a: Action) -> None:
        module = a.module.split("->")[0]
        for m in a.microbatches:
            live = self._live.get((module, a.stage, m))
            if live is None:
                continue
            assert live.output is not None
            move = self._work.move(a, m)
            hidden = move.transfer.channel.hidden
            if live.output.shape[1] != hidden:
                raise DataError(
                    f"stage {a.stage} of module {module} returned {list(live.output.shape)}, but the plan "
                    f"declares rows of {hidden}; change the stage or `hidden` of {_where_hidden(a.module)}"
                )
            self._exchange.send(move.transfer, move.share, live.output)

    def _send_backward(self, a: Action) -> None:
        for m in a.microbatches:
            module = a.module.split("->")[-1]
            live = self._live.get((module, a.stage, m))
            if live is None:
                continue
            leaf = live.boundary[a.module] if "->" in a.module else live.rows
            assert leaf is not None
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            move = self._work.move(a, m)
            self._exchange.send(move.transfer, move.share, gradient)

    def _receive(self, a: Action) -> None:
        for m in a.microbatches:
            move = self._work.move(a, m)
            self._arriving[a.module, a.kind, a.stage, m] = self._exchange.receive(move.transfer, move.share)

    def _from_neighbor(self, a: Action, kind: Kind, m: int) -> Tensor | None:
        """What the stage before (RECV_F) or after (RECV_B) made: received, or handed over on this rank."""
        arrived = self._arrived(a.module, kind, a.stage, m)
        neighbor = self._live.get((a.module, a.stage - 1 if kind is Kind.RECV_F else a.stage + 1, m))
        if arrived is not None or neighbor is None:
            return arrived
        if kind is Kind.RECV_F:
            assert neighbor.output is not None
            return self._exchange.lasting(neighbor.output.detach())
        assert neighbor.rows is not None
        # A loss of nothing has no gradient, and over messages that would be zeros as well.
        return torch.zeros_like(neighbor.rows) if neighbor.rows.grad is None else neighbor.rows.grad

    def _arrived(self, module_or_edge: str, kind: Kind, stage: int, m: int) -> Tensor | None:
        arriving = self._arriving.pop((module_or_edge, kind, stage, m), None)
        if arriving is None:
            return None
        # Autograd may keep what a backward is given, as a parameter's gradient say, so that is never lent.
        return arriving.take() if kind is Kind.RECV_B else arriving.wait()

    def _reduce_gradients(self, a: Action) -> None:
        with self._recorder.waiting():
            self._reduce(a.module, self.parameters[a.module, a.stage])


def _where_hidden(module_or_edge: str) -> str:
    """Where a plan says how wide the rows of a transfer are."""
    module, *consumer = module_or_edge.split("->")
    return f"the boundary, or where it has none of module {consumer[0]}" if consumer else f"module {module}"
