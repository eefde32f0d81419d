"""The best placement of whole microbatches, by trying all of them: slow, small, and independent of the compiled search.

Actions are appended to lanes in the order of their start, so that every placement is met once. A branch ends where
the work that is left, or the longest chain of it, cannot end in time, or where the same state was met before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hetsched.schedule.action import Action, Kind, act


@dataclass(frozen=True)
class Case:
    """A pipeline of one stage a lane, and an encoder with a replica on every lane.

    Args:
        lanes: the pipeline's actions.
        forward, backward: of a stage, by lane.
        encoder_forward, encoder_backward: of each microbatch.
    """

    lanes: Sequence[Sequence[Action]]
    forward: Sequence[int]
    backward: Sequence[int]
    encoder_forward: Sequence[int]
    encoder_backward: Sequence[int]

    def duration(self, action: Action) -> int:
        return (self.forward if action.kind is Kind.F else self.backward)[action.stage]


class State(NamedTuple):
    """What has been appended; times of what is to come are all that matters of the past.

    Args:
        taken: actions of each lane.
        free: when each lane is.
        encoded: for each microbatch the lane and the end of its encoder's forward, (-1, -1) before.
        given: the end of its gradient, -1 before, and -2 once its encoder's backward is placed.
        arrived: the end of the last action of a microbatch, for what follows it on the next lane.
    """

    taken: tuple[int, ...]
    free: tuple[int, ...]
    encoded: tuple[tuple[int, int], ...]
    given: tuple[int, ...]
    arrived: tuple[int, ...]
    now: int


@dataclass
class Search:
    """``best`` is the shortest makespan below the given limit, once ``run`` is done; the limit if there is none."""

    case: Case
    best: int
    num_states: int = 0
    seen: set[State] = field(default_factory=set)
    tails: dict[Action, int] = field(default_factory=dict)

    def run(self) -> int:
        case = self.case
        self._find_tails()
        num_lanes, num_microbatches = len(case.lanes), len(case.encoder_forward)
        start = State(
            taken=(0,) * num_lanes,
            free=(0,) * num_lanes,
            encoded=((-1, -1),) * num_microbatches,
            given=(-1,) * num_microbatches,
            arrived=(0,) * num_microbatches,
            now=0,
        )
        work = sum(case.duration(action) for lane in case.lanes for action in lane)
        self._try(start, work + sum(case.encoder_forward) + sum(case.encoder_backward))
        return self.best

    def _find_tails(self) -> None:
        """The longest chain from each action's start on, its microbatch's encoder backward included."""
        case = self.case
        last = len(case.lanes) - 1

        def tail(lane: int, place: int) -> int:
            action = case.lanes[lane][place]
            if action in self.tails:
                return self.tails[action]
            follow = [tail(lane, place + 1)] if place + 1 < len(case.lanes[lane]) else [0]
            is_forward = action.kind is Kind.F
            if is_forward and lane < last:
                follow.append(tail(lane + 1, list(case.lanes[lane + 1]).index(_beside(action, 1))))
            elif not is_forward and lane > 0:
                follow.append(tail(lane - 1, list(case.lanes[lane - 1]).index(_beside(action, -1))))
            elif not is_forward:
                follow.append(case.encoder_backward[action.first])
            self.tails[action] = case.duration(action) + max(follow)
            return self.tails[action]

        for lane in range(last + 1):
            tail(lane, 0)

    def _try(self, state: State, work_left: int) -> None:
        if work_left == 0:
            self.best = min(self.best, max(state.free))
            return
        if state in self.seen or self._bound(state, work_left) >= self.best:
            return
        self.seen.add(state)
        self.num_states += 1
        for duration, after in sorted(self._next(state), key=lambda entry: entry[1].now):
            self._try(after, work_left - duration)

    def _bound(self, state: State, work_left: int) -> int:
        case = self.case
        free = [max(time, state.now) for time in state.free]
        bound = max(-(-(sum(free) + work_left) // len(free)), *state.free)
        for lane, (actions, taken) in enumerate(zip(case.lanes, state.taken, strict=True)):
            if taken < len(actions):
                bound = max(bound, free[lane] + self.tails[actions[taken]])
        for m, (where, _) in enumerate(state.encoded):
            if where < 0:
                first = next(action for action in case.lanes[0] if action.kind is Kind.F and action.first == m)
                bound = max(bound, min(free) + case.encoder_forward[m] + self.tails[first])
            elif state.given[m] >= 0:
                bound = max(bound, max(free[where], state.given[m]) + case.encoder_backward[m])
        return bound

    def _next(self, state: State) -> Iterator[tuple[int, State]]:
        """Every action that may be appended, with its duration and what comes of it."""
        case = self.case
        for lane, (actions, taken) in enumerate(zip(case.lanes, state.taken, strict=True)):
            if taken == len(actions):
                continue
            action = actions[taken]
            ready = self._ready(state, action)
            if ready is not None and (start := max(state.free[lane], ready)) >= state.now:
                end = start + case.duration(action)
                given = state.given
                if lane == 0 and action.kind is Kind.B:
                    given = _with(given, action.first, end)
                after = state._replace(
                    taken=_with(state.taken, lane, taken + 1), arrived=_with(state.arrived, action.first, end)
                )
                yield case.duration(action), after._replace(free=_with(state.free, lane, end), given=given, now=start)
        for m, (where, _) in enumerate(state.encoded):
            yield from self._encoder(state, m, where)

    def _encoder(self, state: State, m: int, where: int) -> Iterator[tuple[int, State]]:
        duration = (self.case.encoder_forward if where < 0 else self.case.encoder_backward)[m]
        if where >= 0:
            if state.given[m] >= 0 and (start := max(state.free[where], state.given[m])) >= state.now:
                after = state._replace(free=_with(state.free, where, start + duration), given=_with(state.given, m, -2))
                yield duration, after._replace(now=start)
            return
        for lane, start in enumerate(state.free):
            if start >= state.now:
                encoded = (*state.encoded[:m], (lane, start + duration), *state.encoded[m + 1 :])
                yield (
                    duration,
                    state._replace(free=_with(state.free, lane, start + duration), encoded=encoded, now=start),
                )

    def _ready(self, state: State, action: Action) -> int | None:
        """When an action's input is there, None if what makes it is not placed."""
        lane, m = action.stage, action.first
        if lane == 0 and action.kind is Kind.F:
            return state.encoded[m][1] if state.encoded[m][0] >= 0 else None
        step = -1 if action.kind is Kind.F else 1
        if lane + step == len(self.case.lanes):
            return state.arrived[m]
        maker = _beside(action, step)
        return state.arrived[m] if maker in self.case.lanes[lane + step][: state.taken[lane + step]] else None


def _beside(action: Action, step: int) -> Action:
    """The same of a neighboring stage."""
    return act(action.module, action.stage + step, action.kind, action.first)


def _with(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])
