"""Short names of actions, for places of a few characters."""

from __future__ import annotations

from collections.abc import Sequence

from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program

_COLLECTIVES = {Kind.UNSHARD: "U", Kind.RESHARD: "S", Kind.REDUCE_GRAD: "R"}


class Labels:
    """The names of a program's actions.

    Modules that produce for others are told by the first letters that set them apart, e.g. ``vF3``; the module that
    computes the loss has none, e.g. ``F3``. The stage is named where a lane has several of the module, e.g. ``4F3``.
    """

    def __init__(self, program: Program) -> None:
        producers = sorted({edge.producer for edge in program.topology.edges})
        self.prefixes = {name: _shortest_prefix(name, producers) for name in producers}
        self._has_virtual = {
            module.name: any(module.stages.count(gangs) > 1 for gangs in module.stages)
            for module in program.topology.modules
        }

    def of(self, action: Action) -> tuple[str, ...]:
        """Names of an action, each shorter than the one before; the last has one character."""
        if action.parts:
            parts = [self._full(part) for part in action.parts]
            return "&".join(parts), "&"
        prefix = self.prefixes.get(action.module, "")
        kind = _COLLECTIVES.get(action.kind, str(action.kind))
        short = prefix[0].lower() if prefix else kind
        return self._full(action), f"{prefix}{kind}", short

    def _full(self, action: Action) -> str:
        prefix = self.prefixes.get(action.module, "")
        stage = str(action.stage) if self._has_virtual.get(action.module) else ""
        kind = _COLLECTIVES.get(action.kind, str(action.kind))
        first = "" if action.first is None else str(action.first)
        window = "" if action.first == action.last else f"-{action.last}"
        return f"{prefix}{stage}{kind}{first}{window}"


def _shortest_prefix(name: str, names: Sequence[str]) -> str:
    """The fewest first letters that no other name starts with, or all of them."""
    for length in range(1, len(name)):
        if not any(other.startswith(name[:length]) for other in names if other != name):
            return name[:length]
    return name
