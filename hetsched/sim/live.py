"""How much of a step's state is alive at once, in microbatches."""

from __future__ import annotations

from collections.abc import Collection

from hetsched.check.memory import memory_changes
from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable, Pattern


def peak_live_microbatches(program: Program, *, modules: Collection[str] | None = None) -> tuple[int, ...]:
    """For each lane the most (stage, microbatch) pairs between the start of their F and the end of their B or W.

    Args:
        program: lowered or not; a lane runs its list in order, so that no times are needed.
        modules: those that count; by default all that take samples and not items.
    """
    if modules is None:
        modules = [module.name for module in program.topology.modules if not module.takes_items]
    one_each = ActionTable({Pattern(Kind.F, name): 1 for name in modules})
    peaks = []
    for lane in range(len(program.lanes)):
        live = peak = 0
        for _, acquired, released in memory_changes(program, lane, one_each):
            live += acquired
            peak = max(peak, live)
            live -= released
        peaks.append(peak)
    return tuple(peaks)
