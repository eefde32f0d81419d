"""DualPipeV: DualPipe cut in half. Two stages a lane, folded into a V; forwards and backwards run as fused pairs.

Lane s has stage s, written F0 B0 here, and stage 2P - 1 - s, written F1 B1; F0B1 is the fused pair of the two,
I1 and W a backward in two halves, of which the W wait in a queue. Each lane goes through

    1. nF0          down the V, until the first microbatch comes back up
    2. nF0F1        both ways
    3. nI1WF1       the turn on the last lane starts the backward
    4. n(F0B1)(F1B0)    steady
    5. nB1(F1B0)    no more forwards come in
    6. nB1B0        the second half of them as I, to fill what follows
    7. nWI0
    8. nW

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.2.1, and the README of deepseek-ai/DualPipe. Where
F = I = W and M >= 2P the bubble is (P - 1)(F&B + B - 3W) for P lanes, on the last lane if a pair costs anything but
F + B, with at most 2P + 1 live activations of one stage. With fewer microbatches the same order is kept without those
that are not there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from hetsched.schedule.action import Action, Kind, act, overlap


def dualpipev(num_lanes: int, num_microbatches: int, *, module: str = "llm") -> tuple[tuple[Action, ...], ...]:
    """For each of ``num_lanes`` lanes, its compute actions; stages s and ``2 * num_lanes - 1 - s`` are on lane s."""
    num_planned = max(num_microbatches, 2 * num_lanes)
    rows = (_Lane(lane, num_lanes, num_planned, module).actions() for lane in range(num_lanes))
    if num_planned == num_microbatches:
        return tuple(map(tuple, rows))
    return tuple(tuple(_up_to(row, num_microbatches)) for row in rows)


def _up_to(actions: Iterator[Action], num_microbatches: int) -> Iterator[Action]:
    """The actions on existing microbatches; of a fused pair the part that is left."""
    for action in actions:
        kept = [part for part in action.flat() if part.first is not None and part.first < num_microbatches]
        yield from [action] if len(kept) == len(list(action.flat())) else kept


@dataclass
class _Lane:
    """Hands out the next microbatch of each kind and side of the V."""

    lane: int
    num_lanes: int
    num_microbatches: int
    module: str
    following: dict[tuple[bool, int], int] = field(default_factory=dict)
    weights: deque[Action] = field(default_factory=deque)

    def actions(self) -> Iterator[Action]:
        num_after = self.num_lanes - self.lane - 1
        for _ in range(2 * num_after):
            yield self.forward(0)
        for _ in range(self.lane + 1):
            yield self.forward(0)
            yield self.forward(1)
        for _ in range(num_after):
            yield self.input_gradient(1)
            yield self.weights.popleft()
            yield self.forward(1)
        for i in range(self.num_microbatches - 2 * self.num_lanes + self.lane + 1):
            if i == 0 and num_after == 0:
                # The turn: apart, so that the backward does not wait for the forward.
                yield self.forward(0)
                yield self.backward(1)
            else:
                yield overlap(self.forward(0), self.backward(1))
            yield overlap(self.forward(1), self.backward(0))
        for _ in range(num_after):
            yield self.backward(1)
            yield overlap(self.forward(1), self.backward(0))
        yield from self.drain()
        for _ in range(num_after):
            yield self.weights.popleft()
            yield self.input_gradient(0)
        yield from self.weights

    def drain(self) -> Iterator[Action]:
        """Backwards of both sides, whole in the first half and without W in the second."""
        num_pairs = self.lane + 1
        for i in range(2 * num_pairs):
            side = 1 - i % 2
            yield self.backward(side) if i < num_pairs else self.input_gradient(side)

    def forward(self, side: int) -> Action:
        return self.next(Kind.F, side)

    def backward(self, side: int) -> Action:
        return self.next(Kind.B, side)

    def input_gradient(self, side: int) -> Action:
        action = self.next(Kind.I, side)
        self.weights.append(act(self.module, action.stage, Kind.W, action.first))
        return action

    def next(self, kind: Kind, side: int) -> Action:
        is_forward = kind is Kind.F
        m = self.following.get((is_forward, side), 0)
        self.following[is_forward, side] = m + 1
        stage = self.lane if side == 0 else 2 * self.num_lanes - 1 - self.lane
        return act(self.module, stage, kind, m)
