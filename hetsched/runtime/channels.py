"""The channels of a plan: what tells the messages of one edge and direction from all others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product

import torch

from hetsched.plan import Plan
from hetsched.runtime.exchange import Channel, Wire
from hetsched.schedule.action import Kind

Key = tuple[str, int, bool]
"""Edge (0) or module and stage, and whether rows go forward."""
_WAY = {True: "forward", False: "backward"}
_FORWARD = (Kind.SEND_F, Kind.RECV_F)


def key_of(edge: str, stage: int, kind: Kind) -> Key:
    """The channel of a transfer's action, by its edge or module, stage and kind."""
    is_forward = kind in _FORWARD
    if "->" in edge:
        return edge, 0, is_forward
    return edge, stage if kind in (Kind.SEND_F, Kind.RECV_B) else stage - 1, is_forward


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

    def of(self, key: Key) -> Channel:
        """The channel of a boundary (stage 0), or from a stage of a module to the next."""
        return self._channels[key]

    def of_signals(self, module: str) -> Channel:
        """The channel on which an encoder's microbatches tell that their state is given up."""
        return self._signals[module]


def _holders(plan: Plan, module: str, stage: int) -> list[int]:
    """The ranks of a stage; those at the same place for two stages of a module share their rows."""
    return list(plan.grids[module].pipeline_rank(plan.pipeline_rank(module, stage)))
