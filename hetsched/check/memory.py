"""Bytes that forwards hold until their backward, lane by lane.

A lane runs its list in order, so what it holds at each action does not depend on time.
"""

from __future__ import annotations

from collections.abc import Iterator

from hetsched.check.grid import draw
from hetsched.errors import ScheduleError
from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable


def memory_changes(program: Program, lane: int, held_bytes: ActionTable) -> Iterator[tuple[int, int, int]]:
    """For each compute action of a lane: its position, the bytes acquired as it starts and released as it ends.

    Args:
        program: lowered or not.
        lane: one of its lanes.
        held_bytes: of F: what it acquires until its B or W, or, without a backward, until it ends itself.
    """
    has_backward = {module.name: module.has_backward for module in program.topology.modules}
    for position, action in enumerate(program.lanes[lane]):
        if not action.kind.is_compute:
            continue
        acquired = released = 0
        for part in action.parts or (action,):
            held = sum(
                held_bytes.find(Kind.F, part.module, part.stage, microbatch=m, lane=lane) or 0
                for m in part.microbatches
            )
            if part.kind is Kind.F:
                acquired += held
            if part.kind is Kind.B or part.kind is Kind.W or (part.kind is Kind.F and not has_backward[part.module]):
                released += held
        yield position, acquired, released


def check_memory(program: Program, held_bytes: ActionTable, *, limit: int) -> None:
    """Refuses a program that holds more than ``limit`` bytes on a lane.

    Raises:
        ScheduleError: at the first action that takes a lane over the limit.
    """
    for lane, actions in enumerate(program.lanes):
        total = 0
        for position, acquired, released in memory_changes(program, lane, held_bytes):
            total += acquired
            if total > limit:
                grid = draw(program, marks={lane: position}, arrow=lane)
                raise ScheduleError(
                    f"lane {lane}, action {position}: {actions[position]} takes the lane to {total} bytes, over the "
                    f"limit of {limit}\n{grid}"
                )
            total -= released
