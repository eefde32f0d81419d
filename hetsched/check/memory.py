"""Bytes that forwards hold until their backward, lane by lane.

A lane runs its list in order, so what it holds after each action does not depend on time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hetsched.check.grid import draw
from hetsched.errors import ScheduleError
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program


@dataclass(frozen=True)
class Memory:
    """Bytes that a microbatch of a stage holds on each of its lanes, from the start of its F to the end of its B or W.

    Args:
        stages: ``(module, stage)`` -> bytes; a stage that is not named holds nothing.
        microbatches: ``(module, stage, microbatch)`` -> bytes, where they differ from the stage's.
    """

    stages: Mapping[tuple[str, int], int]
    microbatches: Mapping[tuple[str, int, int], int] = field(default_factory=dict)

    def held(self, action: Action, microbatch: int) -> int:
        """Bytes of one microbatch of the action's stage."""
        per_stage = self.stages.get((action.module, action.stage), 0)
        return self.microbatches.get((action.module, action.stage, microbatch), per_stage)


def changes(program: Program, lane: int, memory: Memory) -> Iterator[tuple[int, int, int]]:
    """For each compute action of a lane: its position, the bytes acquired as it starts and released as it ends."""
    without_backward = {module.name for module in program.topology.modules if not module.has_backward}
    for position, action in enumerate(program.lanes[lane]):
        if not action.kind.is_compute:
            continue
        acquired = released = 0
        for part in action.flat():
            held = sum(memory.held(part, m) for m in part.microbatches)
            acquired += held if part.kind is Kind.F else 0
            released += held if part.kind in (Kind.B, Kind.W) or part.module in without_backward else 0
        yield position, acquired, released


def check_memory(program: Program, memory: Memory, *, limit: int) -> None:
    """Refuses a program that holds more than ``limit`` bytes on a lane.

    Raises:
        ScheduleError: at the first action that takes a lane over the limit.
    """
    for lane, actions in enumerate(program.lanes):
        total = 0
        for position, acquired, released in changes(program, lane, memory):
            total += acquired
            if total > limit:
                grid = draw(program, marks={lane: position}, arrow=lane)
                raise ScheduleError(
                    f"lane {lane}, action {position}: {actions[position]} takes the lane to {total} bytes, over the "
                    f"limit of {limit}\n{grid}"
                )
            total -= released
