"""The checker: a lowered program either runs to its end or is refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hetsched.check.deadlock import explain_deadlock
from hetsched.check.explain import explain
from hetsched.check.flat import Fault, FlatProgram, flatten
from hetsched.check.memory import check_memory
from hetsched.errors import ScheduleError
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable

Slots = int | Mapping[tuple[str, str], int] | None
"""How many messages fit into one channel, from their SEND until their RECV is done: as many as needed, a number, or
a number for each ``(module or edge, "F" or "B")``, and as many as needed for those that are not named."""


def validate(
    program: Program,
    *,
    slots: Slots = None,
    rendezvous: bool = False,
    memory: ActionTable | None = None,
    memory_limit: int | None = None,
) -> None:
    """Refuses a lowered program that is not complete, not in order, or cannot run to its end.

    Each lane executes its list in order. Nothing is missing or done twice; each action comes after what it
    needs; each SEND has one RECV, in the same order per channel (edge or pair of stages, direction, source and
    destination lane); all lanes of a gang or a collective reach it; no lanes wait for each other in a circle.
    A forward-only program, without a single backward or REDUCE_GRAD, is sound.

    Args:
        program: lowered by ``hetsched.lower``.
        slots: see ``Slots``; a SEND holds its lane until it finds a free one. A RECV copies its message out, so
            that its slot is free again as it ends.
        rendezvous: a SEND holds its lane until its RECVs are reached, as if there were no slots; a lane's
            messages to itself are exempt.
        memory: of F: bytes that it acquires as it starts, until its B or W ends.
        memory_limit: the most bytes that a lane may hold; needs ``memory``.

    Raises:
        ScheduleError: the program has a fault; the message explains it and shows the lanes with an arrow.
    """
    flat = check(program)
    run_to_end(flat, slots=slots, rendezvous=rendezvous)
    if memory is not None and memory_limit is not None:
        check_memory(program, memory, limit=memory_limit)


def check(program: Program) -> FlatProgram:
    """The program in the engine's form, all checked but that it runs to its end.

    Raises:
        ScheduleError: see ``validate``.
    """
    flat = flatten(program)
    if isinstance(flat, Fault):
        raise ScheduleError(explain(program, flat))
    return flat


def run_to_end(flat: FlatProgram, *, slots: Slots = None, rendezvous: bool = False) -> None:
    """Runs the program without costs.

    Raises:
        ScheduleError: some lanes wait for each other; the message names the circle.
    """
    no_time = np.zeros(flat.lane_begin[-1], np.int64)
    free = np.zeros(2 * len(flat.names) * flat.program.num_microbatches, np.int64)
    run = flat.compiled.run(no_time, free, slot_table(flat, slots), rendezvous)
    if not run.waits:
        return
    unlimited = slot_table(flat, None)
    is_eager_sound = not flat.compiled.run(no_time, free, unlimited, False).waits
    raise ScheduleError(explain_deadlock(flat, run.waits, rendezvous=rendezvous, is_eager_sound=is_eager_sound))


def slot_table(flat: FlatProgram, slots: Slots) -> NDArray[np.int64]:
    """Slots of a channel by (number of the name, direction); -1 for as many as needed.

    Raises:
        ScheduleError: fewer than one slot, or a name that the program does not have.
    """
    given: Mapping[tuple[str, str], int]
    if slots is None:
        given = {}
    elif isinstance(slots, int):
        given = {(name, direction): slots for name in flat.names for direction in "FB"}
    else:
        given = slots
    table = np.full(2 * len(flat.names), -1, np.int64)
    for (name, direction), count in given.items():
        if name not in flat.names or direction not in ("F", "B") or count < 1:
            raise ScheduleError(f"slots of {name} {direction}: {count}; at least 1, for F or B of {list(flat.names)}")
        table[2 * flat.names[name] + "FB".index(direction)] = count
    return table
