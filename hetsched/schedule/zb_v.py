"""ZB-V: two stages a lane, folded into a V, so that the last stage lies on the first lane.

Lane s has stage s, written F0 I0 W0 here, and stage 2P - 1 - s, written F1 I1 W1. Each lane goes through

    1. nF0          down the V, until the first microbatch comes back up
    2. nF1F0        both ways
    3. nF1I1W1      the turn on the last lane starts the backward
    4. nF0I0W0F1I1W1    steady
    5. nI0I1, nI0W0     the backward drains; W fills
    6. nW1, nW0

Source: Qi et al. 2024 (arXiv 2405.15362), V-ZB. Where F = I = W and M >= 2P - 1 no lane has a bubble between its
first and its last action and the makespan is that of its work and (P - 1)F; 2P live activations of one stage, as much
memory as 1F1B takes on its first lane. With fewer microbatches the same order is kept without those that are not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hetsched.schedule.action import Action, Kind, act


def zb_v(num_lanes: int, num_microbatches: int, *, module: str = "llm") -> tuple[tuple[Action, ...], ...]:
    """For each of ``num_lanes`` lanes, its compute actions; stages s and ``2 * num_lanes - 1 - s`` are on lane s."""
    num_planned = max(num_microbatches, 2 * num_lanes - 1)
    rows = (_Lane(lane, num_lanes, num_planned, module).actions() for lane in range(num_lanes))
    if num_planned == num_microbatches:
        return tuple(map(tuple, rows))
    return tuple(tuple(a for a in row if a.first is not None and a.first < num_microbatches) for row in rows)


@dataclass
class _Lane:
    """Hands out the next microbatch of each kind and side of the V."""

    lane: int
    num_lanes: int
    num_microbatches: int
    module: str
    following: dict[tuple[Kind, int], int] = field(default_factory=dict)

    def next(self, kind: Kind, side: int) -> Action:
        m = self.following.get((kind, side), 0)
        self.following[kind, side] = m + 1
        stage = self.lane if side == 0 else 2 * self.num_lanes - 1 - self.lane
        return act(self.module, stage, kind, m)

    def left(self, kind: Kind, side: int) -> int:
        return self.num_microbatches - self.following.get((kind, side), 0)

    def actions(self) -> Iterator[Action]:
        num_behind = self.num_lanes - self.lane
        for _ in range(2 * num_behind - 1):
            yield self.next(Kind.F, 0)
        for _ in range(self.lane):
            yield self.next(Kind.F, 1)
            yield self.next(Kind.F, 0)
        for _ in range(num_behind):
            yield from self.forward_backward(1)
        while self.left(Kind.F, 1):
            yield from self.forward_backward(0)
            yield from self.forward_backward(1)
        for _ in range(self.lane):
            yield self.next(Kind.I, 0)
            yield self.next(Kind.I, 1)
        for _ in range(num_behind):
            yield self.next(Kind.I, 0)
            yield self.next(Kind.W, 0)
        for side in (1, 0):
            while self.left(Kind.W, side):
                yield self.next(Kind.W, side)

    def forward_backward(self, side: int) -> Iterator[Action]:
        if self.left(Kind.F, side):
            yield self.next(Kind.F, side)
        yield self.next(Kind.I, side)
        yield self.next(Kind.W, side)
