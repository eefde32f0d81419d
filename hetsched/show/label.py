"""Short names of actions, for places of a few characters."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program

WORDS = {
    Kind.F: "forward",
    Kind.B: "backward",
    Kind.I: "input gradient",
    Kind.W: "weight gradient",
    Kind.UNSHARD: "parameters gathered",
    Kind.RESHARD: "parameters given up",
    Kind.REDUCE_GRAD: "gradients summed",
}
"""What the kinds of actions stand for."""
COLLECTIVES = {Kind.UNSHARD: "U", Kind.RESHARD: "S", Kind.REDUCE_GRAD: "R"}


class Labels:
    """The names of a program's actions.

    Modules that produce for others are told by a letter of their own, e.g. ``vF3``; the module that computes the loss
    has none, e.g. ``F3``. The stage is named where a lane has several of the module, e.g. ``4F3``.
    """

    def __init__(self, program: Program) -> None:
        producers = sorted({edge.producer for edge in program.topology.edges})
        self.prefixes = _letters(producers)
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
        kind = COLLECTIVES.get(action.kind, str(action.kind))
        return self._full(action), f"{prefix}{kind}", prefix or kind

    def _full(self, action: Action) -> str:
        prefix = self.prefixes.get(action.module, "")
        stage = str(action.stage) if self._has_virtual.get(action.module) else ""
        kind = COLLECTIVES.get(action.kind, str(action.kind))
        first = "" if action.first is None else str(action.first)
        window = "" if action.first == action.last else f"-{action.last}"
        return f"{prefix}{stage}{kind}{first}{window}"


def _letters(names: Sequence[str]) -> dict[str, str]:
    """For each name the first of its letters that no name before it has taken, or else of the alphabet.

    They are small letters, as kinds are capitals; more modules than there are letters share the last one.
    """
    letters: dict[str, str] = {}
    for name in names:
        free = (letter for letter in name.lower() + ascii_lowercase if letter in ascii_lowercase)
        letters[name] = next((letter for letter in free if letter not in letters.values()), ascii_lowercase[-1])
    return letters
