"""One step seen from one rank: its shares, their tensors, and what each transfer moves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import TypeVar

import torch
from torch import Tensor

from hetsched.batch import Batch
from hetsched.graph import make_topology
from hetsched.layout.held import Held
from hetsched.layout.routes import Segment, segments_of
from hetsched.layout.tokens import positions_of
from hetsched.plan import Plan
from hetsched.runtime.exchange import Channel, Transfer, Wire
from hetsched.runtime.executor import Move
from hetsched.runtime.feed import integers, load_held, make_meta, to_device
from hetsched.runtime.stage import BoundaryRows, StageMeta
from hetsched.schedule.action import Action, Kind
from hetsched.sim.credits import ShareKey
from hetsched.stepplan import StepPlan

T = TypeVar("T")
_FORWARD = (Kind.SEND_F, Kind.RECV_F)
_WAY = {True: "forward", False: "backward"}


class Channels:
    """The channels of a plan: one per direction of every boundary and of every pair of neighboring stages."""

    def __init__(self, plan: Plan) -> None:
        self._channels: dict[tuple[str, int, bool], Channel] = {}
        self._wires: list[Wire] = []
        for boundary in plan.boundaries:
            dtype = getattr(torch, boundary.dtype or plan.dtype)
            last = plan.modules[boundary.producer].layout.num_stages - 1
            ends = (_holders(plan, boundary.producer, last), _holders(plan, boundary.consumer, boundary.stage))
            self._add((boundary.name, 0), plan.boundary_hidden(boundary), dtype, list(product(*ends)))
        for module, grid in plan.grids.items():
            for stage in range(grid.layout.num_stages - 1):
                ends = (_holders(plan, module, stage), _holders(plan, module, stage + 1))
                pairs = list(zip(*ends, strict=True))
                self._add((module, stage), plan.hidden(module), getattr(torch, plan.dtype), pairs)
        self._signals = {b.producer: self._add_signals(plan, b.producer) for b in plan.boundaries}

    def _add(self, edge: tuple[str, int], hidden: int, dtype: torch.dtype, pairs: Sequence[tuple[int, int]]) -> None:
        name = edge[0] if "->" in edge[0] else f"{edge[0]} stages {edge[1]} and {edge[1] + 1}"
        for is_forward in (True, False):
            channel = Channel(len(self._channels), hidden, dtype, f"{name}, {_WAY[is_forward]}")
            self._channels[*edge, is_forward] = channel
            for pair in pairs:
                source, destination = pair if is_forward else pair[::-1]
                if source != destination:
                    self._wires.append(Wire(channel.tag, source, destination, channel.name))

    def _add_signals(self, plan: Plan, encoder: str) -> Channel:
        tag = len(self._channels) + [b.producer for b in plan.boundaries].index(encoder)
        channel = Channel(tag, 1, torch.uint8, f"{encoder}, signals that a microbatch is given up", is_signal=True)
        if plan.schedule.in_flight is not None:
            pairs = permutations(plan.grids[encoder].ranks, 2)
            self._wires.extend(Wire(tag, source, destination, channel.name) for source, destination in pairs)
        return channel

    @property
    def wires(self) -> tuple[Wire, ...]:
        """Each channel between each pair of ranks that it may connect, in the same order on every rank."""
        return tuple(self._wires)

    def of(self, edge: str, stage: int, *, is_forward: bool) -> Channel:
        """The channel of a boundary (stage 0), or from ``stage`` of a module to the next."""
        return self._channels[edge, stage, is_forward]

    def of_signals(self, module: str) -> Channel:
        """The channel on which an encoder's microbatches tell that their state is given up."""
        return self._signals[module]


class RankStep:
    """The StepWork of one rank; see hetsched.runtime.executor.

    Args:
        plan, step: what was decided.
        rank: this process.
        channels: of the plan.
        device: where tensors live.
    """

    def __init__(self, plan: Plan, step: StepPlan, *, rank: int, channels: Channels, device: torch.device) -> None:
        self.divisor = step.divisor
        self._plan, self._step, self._rank, self._channels, self._device = plan, step, rank, channels, device
        self._where = {name: grid.coordinates(rank) for name, grid in plan.grids.items() if rank in grid}
        _, self._ranks_of = make_topology(plan)
        self._lane = next(lane for lane, ranks in enumerate(self._ranks_of) if rank in ranks)
        self._metas: dict[tuple[str, int], StageMeta] = {}
        self._indices: dict[tuple[str, int], Tensor] = {}
        self._routes: dict[tuple[str, int, bool], tuple[Segment, ...]] = {}

    def load(self, batch: Batch) -> None:
        """Load the shares whose first or last stage is on this rank, and put all that the step asks for on the device.

        Raises:
            DataError: as by hetsched.runtime.feed.load_held.
        """
        dtype = getattr(torch, self._plan.dtype)
        for module, at in self._where.items():
            last = self._plan.modules[module].layout.num_stages - 1
            reads = at.pp in {self._plan.pipeline_rank(module, stage) for stage in (0, last)}
            for m in range(self._plan.microbatches):
                held = self._held(module, m)
                tensors = load_held(batch, held, cp=at.cp) if reads else {}
                inputs = to_device(tensors, device=self._device, dtype=dtype)
                self._metas[module, m] = make_meta([held], at.cp, microbatch=m, inputs=inputs, device=self._device)
        for key, crossing in self._step.crossings.items():
            if self._rank in crossing.index:
                positions = positions_of(*crossing.index[self._rank].T)
                self._indices[key] = integers(positions, torch.int64, device=self._device)
            for is_forward, route in ((True, crossing.forward), (False, crossing.backward)):
                self._routes[*key, is_forward] = segments_of(route, rank=self._rank)

    def num_tokens(self, module: str, microbatch: int) -> int:
        return self._held(module, microbatch).num_tokens(self._where[module].cp)

    def num_rows(self, module: str, microbatch: int) -> int:
        return self._held(module, microbatch).num_rows(self._where[module].cp)

    def meta(
        self, module: str, stage: int, microbatches: Sequence[int], boundary: Mapping[str, BoundaryRows]
    ) -> StageMeta:
        first, *others = (self._metas[module, m] for m in microbatches)
        if not others:
            return replace(first, boundary=boundary)
        inputs = {key: torch.cat([tensor, *(of.inputs[key] for of in others)]) for key, tensor in first.inputs.items()}
        held, cp = [self._held(module, m) for m in microbatches], self._where[module].cp
        return make_meta(held, cp, microbatch=microbatches[0], inputs=inputs, device=self._device)

    def recomputes(self, module: str, microbatch: int) -> bool:
        return microbatch in self._step.recomputed.get(module, ())

    def move(self, action: Action, microbatch: int) -> Move:
        is_forward = action.kind in _FORWARD
        if "->" in action.module:
            return self._boundary_move(action, microbatch, is_forward)
        goes_on = action.kind in (Kind.SEND_F, Kind.RECV_B)
        stage = action.stage if goes_on else action.stage - 1
        num_tokens, at = self.num_tokens(action.module, microbatch), self._where[action.module]
        grid = self._plan.grids[action.module]
        pps = (self._plan.pipeline_rank(action.module, s) for s in (stage, stage + 1))
        first, second = (grid.rank(cp=at.cp, dp=at.dp, pp=pp) for pp in pps)
        ends = (first, second) if is_forward else (second, first)
        route = (Segment(ends[0], 0, ends[1], 0, num_tokens),) if num_tokens else ()
        channel = self._channels.of(action.module, stage, is_forward=is_forward)
        return Move(Transfer(channel, microbatch), route, num_tokens)

    def _boundary_move(self, action: Action, microbatch: int, is_forward: bool) -> Move:
        step = self._step.crossings[action.module, microbatch]
        channel = self._channels.of(action.module, 0, is_forward=is_forward)
        if action.kind is Kind.RECV_F:
            num_rows = step.num_arriving(self._rank)
        elif action.kind is Kind.RECV_B:
            num_rows = step.produced[self._rank]
        else:
            num_rows = 0
        route = self._routes[action.module, microbatch, is_forward]
        return Move(Transfer(channel, microbatch), route, num_rows)

    def signals_to(self, action: Action) -> Iterable[tuple[Transfer, Collection[int]]]:
        for m, lanes in self._of_share(self._step.signals.given, action, Kind.B):
            yield Transfer(self._channels.of_signals(action.module), m), self._others(lanes)

    def signals_from(self, action: Action) -> Iterable[tuple[Transfer, Mapping[int, int]]]:
        for m, counts in self._of_share(self._step.signals.awaited, action, Kind.F):
            of_ranks = {rank: count for lane, count in counts.items() for rank in self._others([lane])}
            yield Transfer(self._channels.of_signals(action.module), m), of_ranks

    def _of_share(self, table: Mapping[ShareKey, T], action: Action, kind: Kind) -> list[tuple[int, T]]:
        """What the table says of each microbatch of an action, if it is of this kind."""
        keys = [(action.module, m, self._lane) for m in action.microbatches] if action.kind is kind else []
        return [(key[1], table[key]) for key in keys if key in table]

    def _others(self, lanes: Iterable[int]) -> list[int]:
        """The ranks on these lanes, without this one."""
        return [rank for lane in lanes for rank in self._ranks_of[lane] if rank != self._rank]

    def boundary_index(self, edge: str, microbatch: int) -> Tensor:
        return self._indices[edge, microbatch]

    def no_rows(self, edge: str) -> Tensor:
        channel = self._channels.of(edge, 0, is_forward=True)
        return torch.empty(0, channel.hidden, dtype=channel.dtype, device=self._device)

    def incoming(self, module: str, stage: int) -> Iterable[str]:
        return [b.name for b in self._plan.boundaries if b.consumer == module and b.stage == stage]

    def outgoing(self, module: str, stage: int) -> Iterable[str]:
        last = self._plan.modules[module].layout.num_stages - 1
        return [b.name for b in self._plan.boundaries if b.producer == module and stage == last]

    def needs_input_gradient(self, module_or_edge: str) -> bool:
        return self._plan.has_backward(module_or_edge.split("->")[0])

    def _held(self, module: str, microbatch: int) -> Held:
        return self._step.shares[module, microbatch][self._where[module].dp]


def _holders(plan: Plan, module: str, stage: int) -> list[int]:
    """The ranks of a stage; those at the same place for two stages of a module share their rows."""
    return list(plan.grids[module].pipeline_rank(plan.pipeline_rank(module, stage)))
