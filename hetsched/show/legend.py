"""What the legend of a picture has: the looks that are drawn, and the words for the letters in their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hetsched.schedule.action import Kind
from hetsched.show.layer import Layer
from hetsched.show.palette import Palette

_WORDS = {Kind.F: "forward", Kind.B: "backward", Kind.I: "input gradient", Kind.W: "weight gradient"}


@dataclass(frozen=True, slots=True)
class Legend:
    """What takes time somewhere in a picture.

    Args:
        looks: their numbers in the palette, in order.
        kinds: of actions, transfers among them.
    """

    looks: tuple[int, ...]
    kinds: frozenset[Kind]

    @property
    def key(self) -> str:
        """What the letters of the kinds stand for."""
        return ", ".join(f"{kind} {word}" for kind, word in _WORDS.items() if kind in self.kinds)


def legend_of(layers: Iterable[Layer], palette: Palette) -> Legend:
    """The legend of what the layers draw; a span that takes no time is not drawn."""
    actions = (span.action for layer in layers for span in layer.timeline.spans if span.end_ns > span.start_ns)
    drawn = {(part.module, part.kind): part for action in actions for part in action.parts or (action,)}
    looks = {palette.number(part) for part in drawn.values() if not part.kind.is_transfer}
    return Legend(tuple(sorted(looks)), frozenset(kind for _, kind in drawn))
