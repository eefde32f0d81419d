"""What the legend of a picture has: the looks that are drawn, and the words for the letters in their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hetsched.schedule.action import Kind
from hetsched.show.label import WORDS
from hetsched.show.layer import Layer
from hetsched.show.palette import Palette


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
        """What the letters of the kinds stand for; collectives have names in full."""
        return ", ".join(f"{kind} {WORDS[kind]}" for kind in WORDS if kind in self.kinds and not kind.is_collective)


def legend_of(layers: Iterable[Layer], palette: Palette) -> Legend:
    """The legend of what the layers draw; a span that takes no time is not drawn."""
    actions = (span.action for layer in layers for span in layer.timeline.spans if span.end_ns > span.start_ns)
    drawn = {(part.module, part.kind): part for action in actions for part in action.parts or (action,)}
    looks = {palette.number(part) for part in drawn.values() if not part.kind.is_transfer}
    return Legend(tuple(sorted(looks)), frozenset(kind for _, kind in drawn))
