"""How much of a step's state is alive at once, in microbatches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program


def peak_live_microbatches(program: Program, *, modules: Collection[str] | None = None) -> tuple[int, ...]:
    """For each lane the most (stage, microbatch) pairs between the start of their F and the end of their B or W.

    Args:
        program: lowered or not; a lane runs its list in order, so that no times are needed.
        modules: those that count; by default all that take samples and not items.
    """
    if modules is None:
        modules = [module.name for module in program.topology.modules if not module.takes_items]
    counted = {module.name: module.has_backward for module in program.topology.modules if module.name in modules}
    return tuple(_peak(actions, counted) for actions in program.lanes)


def _peak(actions: Sequence[Action], counted: Mapping[str, bool]) -> int:
    """The peak of one lane; ``counted`` says of each module that counts whether it has a backward."""
    live = peak = 0
    for action in actions:
        ended = 0
        for part in action.parts or (action,):
            if part.module not in counted or part.first is None or part.last is None:
                continue
            size = part.last - part.first + 1
            if part.kind is Kind.F:
                live += size
            if part.kind is Kind.B or part.kind is Kind.W or (part.kind is Kind.F and not counted[part.module]):
                ended += size
        # The parts of a fused pair hold their state side by side.
        peak = max(peak, live)
        live -= ended
    return peak
