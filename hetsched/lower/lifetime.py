"""When a stage's microbatch is done with: after the last action of the list that touches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hetsched.schedule.action import Action, Kind

Key = tuple[str, int, int]
"""Module, stage and microbatch."""


def last_uses(actions: Sequence[Action]) -> dict[int, list[Key]]:
    """For each place in a lane's list what nothing after it touches.

    A forward reads what the stage before made, a backward the gradient that the stage after made, where that is on
    the same lane, and a transfer what it sends. What an action stores by itself, like the factors of a deferred weight
    gradient, is not counted.
    """
    last = {key: place for place, action in enumerate(actions) for key in _touched(action)}
    result: dict[int, list[Key]] = {}
    for key, place in last.items():
        result.setdefault(place, []).append(key)
    return result


def last_reads(actions: Sequence[Action]) -> dict[tuple[str, int, int, bool], int]:
    """Where in a lane's list a stage's microbatch last reads what it received: module, stage, microbatch and whether
    that is its gradient, which the backward takes. What it received to work on is read by whatever touches the
    microbatch, and by the weight gradient that is deferred from its backward."""
    last: dict[tuple[str, int, int, bool], int] = {}
    for place, action in enumerate(actions):
        for key in _touched(action):
            last[*key, False] = place
        for part in action.flat():
            for m in part.microbatches:
                if part.kind is Kind.W:
                    last[part.module, part.stage, m, False] = place
                elif part.kind in (Kind.B, Kind.I):
                    last[part.module, part.stage, m, True] = place
    return last


def _touched(action: Action) -> Iterator[Key]:
    for part in action.flat():
        for m in part.microbatches:
            match part.kind:
                case Kind.F:
                    yield part.module, part.stage, m
                    yield part.module, part.stage - 1, m
                case Kind.B | Kind.I:
                    yield part.module, part.stage, m
                    yield part.module, part.stage + 1, m
                case Kind.SEND_F:
                    yield part.module.split("->")[0], part.stage, m
                case Kind.SEND_B:
                    yield part.module.split("->")[-1], part.stage, m
