"""One step seen from one rank: its shares, their tensors, and what each transfer moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from hetsched.batch import Batch
from hetsched.graph import make_topology
from hetsched.layout.held import Held
from hetsched.layout.rank_share import rank_share, whole
from hetsched.layout.tokens import positions_of
from hetsched.plan import Plan
from hetsched.runtime.channels import Channels, Key, key_of
from hetsched.runtime.exchange import Transfer
from hetsched.runtime.executor import Move
from hetsched.runtime.feed import PackedMeta, load_held
from hetsched.runtime.parcel import Parcel
from hetsched.runtime.stage import BoundaryRows, StageMeta
from hetsched.runtime.step_rooms import StepRooms
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder.credits import ShareKey
from hetsched.stepplan import StepPlan

T = TypeVar("T")


class RankStep:
    """The StepWork of one rank; see hetsched.runtime.executor.

    Args:
        plan, step: what was decided.
        rank: this process.
        channels: of the plan.
        device: where tensors live.
        rooms: where rows arrive in memory that is lent.
    """

    def __init__(
        self,
        plan: Plan,
        step: StepPlan,
        *,
        rank: int,
        channels: Channels,
        device: torch.device,
        rooms: StepRooms | None = None,
    ) -> None:
        self.divisor, self.rooms = step.divisor, StepRooms() if rooms is None else rooms
        self._plan, self._step, self._rank, self._channels, self._device = plan, step, rank, channels, device
        self.dtype: torch.dtype = getattr(torch, plan.dtype)
        self._where = {name: grid.coordinates(rank) for name, grid in plan.grids.items() if rank in grid}
        _, self._ranks_of = make_topology(plan)
        self._lane = next(lane for lane, ranks in enumerate(self._ranks_of) if rank in ranks)
        self._metas: dict[tuple[str, int], StageMeta] = {}
        self._indices: dict[tuple[str, int], Tensor] = {}
        self._moves: dict[tuple[Key, int], Move] = {}
        # Tables, as they are asked for before and after every action, mostly for nothing.
        self.given_back: Mapping[int, Sequence[Transfer]] = self.rooms.ends[self._lane] if self.rooms.ends else {}
        self.signals_to: Mapping[int, Sequence[tuple[Transfer, Collection[int]]]] = {
            place: [(transfer, self._others(lanes)) for transfer, lanes in of]
            for place, of in self._of_places(Kind.B, step.signals.given).items()
        }
        self.signals_from: Mapping[int, Sequence[tuple[Transfer, Mapping[int, int]]]] = {
            place: [(t, {rank: n for lane, n in counts.items() for rank in self._others([lane])}) for t, counts in of]
            for place, of in self._of_places(Kind.F, step.signals.awaited).items()
        }

    def load(self, batch: Batch) -> None:
        """Load what the first or last stages on this rank are given, and put all that the step asks for on the device.

        Raises:
            DataError: as by hetsched.runtime.feed.load_held.
        """
        parcel = Parcel(self._device, self.dtype)
        metas: dict[tuple[str, int], PackedMeta] = {}
        for module, at in self._where.items():
            reads = at.pp in {self._plan.pipeline_rank(module, stage) for stage in self._reading(module)}
            for m in range(self._plan.microbatches):
                held = self._held(module, m)
                inputs = load_held(batch, held, cp=at.cp) if reads else {}
                metas[module, m] = PackedMeta.of(parcel, [held], at.cp, inputs=inputs)
        indices = {
            key: parcel.add_integers(positions_of(*crossing.index[self._rank].T), torch.int64)
            for key, crossing in self._step.crossings.items()
            if self._rank in crossing.index
        }
        parcel.send()
        self._metas = {(module, m): packed.unpacked(m) for (module, m), packed in metas.items()}
        self._indices = {key: packed.tensor for key, packed in indices.items()}
        self._moves.update(self._over_boundaries())
        self._moves.update(self._between_stages())

    def _over_boundaries(self) -> Iterator[tuple[tuple[Key, int], Move]]:
        for (edge, m), crossing in self._step.crossings.items():
            arriving = crossing.num_arriving(self._rank) if self._rank in crossing.index else 0
            made = crossing.produced.get(self._rank, 0)
            for is_forward, route, num_rows in ((True, crossing.forward, arriving), (False, crossing.backward, made)):
                key = edge, 0, is_forward
                share = rank_share(route, self._rank, num_rows=num_rows)
                yield (key, m), Move(Transfer(self._channels.of(key), m), share)

    def _between_stages(self) -> Iterator[tuple[tuple[Key, int], Move]]:
        for module, at in self._where.items():
            grid = self._plan.grids[module]
            for stage in range(grid.layout.num_stages - 1):
                pps = (self._plan.pipeline_rank(module, s) for s in (stage, stage + 1))
                ends = [grid.rank(cp=at.cp, dp=at.dp, pp=pp) for pp in pps]
                if self._rank not in ends or ends[0] == ends[1]:
                    continue
                for is_forward, m in product((True, False), range(self._plan.microbatches)):
                    source, destination = ends if is_forward else ends[::-1]
                    share = whole(source, destination, self.num_tokens(module, m), rank=self._rank)
                    key = module, stage, is_forward
                    yield (key, m), Move(Transfer(self._channels.of(key), m), share)

    def num_tokens(self, module: str, microbatch: int) -> int:
        return self._held(module, microbatch).num_tokens(self._where[module].cp)

    def contents(self, module: str, microbatch: int) -> str:
        return str(self._held(module, microbatch).share)

    def num_rows(self, module: str, stage: int, microbatch: int) -> int | None:
        if stage < self._plan.modules[module].layout.num_stages - 1:
            return self.num_tokens(module, microbatch)
        return None if module == self._plan.sink else self._held(module, microbatch).num_rows(self._where[module].cp)

    def meta(
        self, module: str, stage: int, microbatches: Sequence[int], boundary: Mapping[str, BoundaryRows]
    ) -> StageMeta:
        first, *others = (self._metas[module, m] for m in microbatches)
        if stage not in self._reading(module):
            first = replace(first, inputs={})
        if not others:
            return replace(first, boundary=boundary) if boundary else first
        inputs = {key: torch.cat([tensor, *(of.inputs[key] for of in others)]) for key, tensor in first.inputs.items()}
        held, cp = [self._held(module, m) for m in microbatches], self._where[module].cp
        parcel = Parcel(self._device, self.dtype)
        packed = PackedMeta.of(parcel, held, cp, inputs={})
        parcel.send()
        return replace(packed.unpacked(microbatches[0]), inputs=inputs)

    def recomputes(self, module: str, microbatch: int) -> bool:
        return microbatch in self._step.recomputed.get(module, ())

    def move(self, action: Action, microbatch: int) -> Move:
        return self._moves[key_of(action.module, action.stage, action.kind), microbatch]

    def _of_places(self, kind: Kind, table: Mapping[ShareKey, T]) -> dict[int, list[tuple[Transfer, T]]]:
        """What a table of signals says of the actions of one kind, by their places in this rank's list."""
        found: dict[int, list[tuple[Transfer, T]]] = defaultdict(list)
        for place, action in enumerate(self._step.program.lanes[self._lane] if table else ()):
            for m in action.microbatches if action.kind is kind else ():
                key = action.module, m, self._lane
                if key in table:
                    found[place].append((Transfer(self._channels.of_signals(action.module), m), table[key]))
        return found

    def _others(self, lanes: Iterable[int]) -> list[int]:
        """The ranks on these lanes, without this one."""
        return [rank for lane in lanes for rank in self._ranks_of[lane] if rank != self._rank]

    def boundary_index(self, edge: str, microbatch: int) -> Tensor:
        return self._indices[edge, microbatch]

    def no_rows(self, edge: str) -> Tensor:
        channel = self._channels.of((edge, 0, True))
        return torch.empty(0, channel.hidden, dtype=channel.dtype, device=self._device)

    def incoming(self, module: str, stage: int) -> Iterable[str]:
        return [b.name for b in self._plan.boundaries if b.consumer == module and b.stage == stage]

    def outgoing(self, module: str, stage: int) -> Sequence[str]:
        last = self._plan.modules[module].layout.num_stages - 1
        return [b.name for b in self._plan.boundaries if b.producer == module and stage == last]

    def needs_input_gradient(self, module_or_edge: str) -> bool:
        return self._plan.has_backward(module_or_edge.split("->")[0])

    def _reading(self, module: str) -> tuple[int, int]:
        """The stages that are given what was loaded."""
        return 0, self._plan.modules[module].layout.num_stages - 1

    def _held(self, module: str, microbatch: int) -> Held:
        return self._step.shares[module, microbatch][self._where[module].dp]
