"""Lanes that wait for each other in a circle, told as a story."""

from __future__ import annotations

from collections.abc import Sequence

from hetsched.check.flat import FlatProgram
from hetsched.check.grid import draw
from hetsched.schedule.action import Action, Kind

Wait = tuple[int, int, int, int]
"""(lane, action, lane waited for, action waited for), in the engine's numbers."""


def explain_deadlock(flat: FlatProgram, waits: Sequence[Wait], *, rendezvous: bool, is_eager_sound: bool) -> str:
    """Names the circle and its reason, and shows the lanes with an arrow at the first of the circle.

    Args:
        flat: the program that stopped.
        waits: for each lane that stopped, what it waits for.
        rendezvous: whether a SEND waited for its RECV.
        is_eager_sound: whether the program ends if a SEND never waits.
    """
    by_lane = {wait[0]: wait for wait in waits}
    circle = _circle(by_lane)
    lines = [_reason(flat, circle, rendezvous=rendezvous, is_eager_sound=is_eager_sound)]
    lines += [f"  {_waiting(flat, by_lane[lane])}" for lane in circle]
    marks = {lane: wait[1] - flat.lane_begin[lane] for lane, wait in by_lane.items()}
    shown = {lane: marks[lane] for lane in circle}
    return "\n".join([*lines, draw(flat.program, marks=shown, arrow=circle[0])])


def _circle(by_lane: dict[int, Wait]) -> list[int]:
    """Lanes that each wait for the next and the last for the first; the smallest comes first."""
    path = [min(by_lane)]
    while (following := by_lane[path[-1]][2]) not in path:
        path.append(following)
    circle = path[path.index(following) :]
    first = circle.index(min(circle))
    return circle[first:] + circle[:first]


def _reason(flat: FlatProgram, circle: Sequence[int], *, rendezvous: bool, is_eager_sound: bool) -> str:
    if is_eager_sound and rendezvous:
        return "deadlock: with rendezvous a SEND waits for its RECV; eager transfers would survive"
    if is_eager_sound:
        return "deadlock: too few slots; with more of them the program would end"
    return "deadlock: the order of the actions is circular"


def _waiting(flat: FlatProgram, wait: Wait) -> str:
    lane, action, for_lane, for_action = wait
    here, there = _action(flat, lane, action), _action(flat, for_lane, for_action)
    if here.kind in (Kind.SEND_F, Kind.SEND_B):
        return f"lane {lane} waits at {here} for lane {for_lane} to receive in {there}"
    if here.kind in (Kind.RECV_F, Kind.RECV_B):
        return f"lane {lane} waits at {here} for lane {for_lane} to send in {there}"
    return f"lane {lane} waits at {here} for lane {for_lane} to enter it too"


def _action(flat: FlatProgram, lane: int, action: int) -> Action:
    return flat.program.lanes[lane][action - flat.lane_begin[lane]]
