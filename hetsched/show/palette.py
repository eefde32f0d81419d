"""Colors and hatches of actions, told apart without color too.

The language model has cool colors without a hatch, each encoder a warm or green pair with a hatch of its own; forwards
are light and backwards dark, so that all differ in gray, in print and for every kind of color blindness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program
from hetsched.sim.bubble import Bubble

DARK_INK, LIGHT_INK = "#16202a", "#ffffff"
LANE, GRID, TEXT, MUTED = "#f1f2f4", "#d9dce1", "#1d2733", "#66707c"
SENT_FORWARD, SENT_BACKWARD, CRITICAL = "#7fa3c0", "#3d4b57", "#111111"


class Hatch(StrEnum):
    """Lines over a fill."""

    NONE = "none"
    RISING = "rising"
    FALLING = "falling"
    LEVEL = "level"
    UPRIGHT = "upright"
    CROSSED = "crossed"
    ZIGZAG = "zigzag"
    GRID = "grid"
    DASHES = "dashes"
    PLUSES = "pluses"
    DOTS = "dots"


TILE = 6
"""Pixels after which a hatch repeats, in both directions."""
_RISING = ((-1, 1, 1, -1), (0, 6, 6, 0), (5, 7, 7, 5))
_FALLING = ((-1, 5, 1, 7), (0, 0, 6, 6), (5, -1, 7, 1))
_LEVEL = ((0, 3, 6, 3),)
_UPRIGHT = ((3, 0, 3, 6),)
LINES: dict[Hatch, tuple[tuple[float, float, float, float], ...]] = {
    Hatch.NONE: (),
    Hatch.RISING: _RISING,
    Hatch.FALLING: _FALLING,
    Hatch.LEVEL: _LEVEL,
    Hatch.UPRIGHT: _UPRIGHT,
    Hatch.CROSSED: _RISING + _FALLING,
    Hatch.ZIGZAG: ((0, 4.5, 3, 1.5), (3, 1.5, 6, 4.5)),
    Hatch.GRID: _LEVEL + _UPRIGHT,
    Hatch.DASHES: ((0, 1.5, 3, 1.5), (3, 4.5, 6, 4.5)),
    Hatch.PLUSES: ((1, 3, 5, 3), (3, 1, 3, 5)),
    Hatch.DOTS: ((1, 1.5, 2, 1.5), (4, 4.5, 5, 4.5)),
}
"""The lines of a tile, each from (x, y) to (x, y)."""


@dataclass(frozen=True, slots=True)
class Look:
    """How the actions of one kind of one module are drawn.

    Args:
        name: in the legend, e.g. ``llm F``.
        fill, ink: colors of the area, and of text and hatch on it.
        hatch: over the fill.
    """

    name: str
    fill: str
    ink: str
    hatch: Hatch = Hatch.NONE


_SINK = {
    Kind.F: ("#a9cfe8", DARK_INK, Hatch.NONE),
    Kind.B: ("#1f5d94", LIGHT_INK, Hatch.NONE),
    Kind.I: ("#4a8fc4", LIGHT_INK, Hatch.NONE),
    Kind.W: ("#d8d2e8", DARK_INK, Hatch.DOTS),
}
_ENCODERS = (("#fbd48a", "#c2561a"), ("#b4dfc5", "#217a58"), ("#eac3da", "#8f3f76"))
_ENCODER_HATCHES = tuple(hatch for hatch in Hatch if hatch not in (Hatch.NONE, Hatch.DOTS))
_COLLECTIVE = ("#8b929a", LIGHT_INK, Hatch.NONE)

CAUSES = dict(zip(Bubble().by_cause(), ("#c9d3dc", "#9fb0be", "#b5446e", "#e0a526", "#5b6874"), strict=True))
"""The color of each cause of a bubble."""


class Palette:
    """The looks of a program's actions, numbered."""

    def __init__(self, programs: Iterable[Program]) -> None:
        self.looks: list[Look] = []
        self._numbers: dict[tuple[str, Kind], int] = {}
        self._encoders: list[str] = []
        for program in programs:
            self._add(program)

    def number(self, action: Action) -> int:
        """The number of an action's look; a fused pair has those of its parts, see ``Action.parts``."""
        return self._numbers[action.module, action.kind]

    def _add(self, program: Program) -> None:
        producers = {edge.producer for edge in program.topology.edges}
        self._encoders += sorted(producers - set(self._encoders))
        used = {(part.module, part.kind) for lane in program.lanes for a in lane for part in a.parts or (a,)}
        order = [module.name for module in program.topology.modules]
        for module in sorted(order, key=lambda name: (name in producers, order.index(name))):
            for kind in Kind:
                if (module, kind) in used and not kind.is_transfer:
                    self._number_look(module, kind)

    def _number_look(self, module: str, kind: Kind) -> None:
        """Collectives look the same whosoever they are."""
        look = Look(str(kind), *_COLLECTIVE) if kind.is_collective else self._look(module, kind)
        if look not in self.looks:
            self.looks.append(look)
        self._numbers[module, kind] = self.looks.index(look)

    def _look(self, module: str, kind: Kind) -> Look:
        name = f"{module} {kind}"
        if module not in self._encoders:
            return Look(name, *_SINK[kind])
        index = self._encoders.index(module)
        light, dark = _ENCODERS[index % len(_ENCODERS)]
        hatch = _ENCODER_HATCHES[index % len(_ENCODER_HATCHES)]
        is_forward = kind is Kind.F
        return Look(name, light if is_forward else dark, DARK_INK if is_forward else LIGHT_INK, hatch)
