"""Text that fits: how wide it is drawn, and the name and the font size that a box has room for."""

from __future__ import annotations

from collections.abc import Iterable

FONT_SIZE, SMALL_FONT_SIZE = 11, 8
BOLD = 1.05
"""At most as much wider is bold text."""
_CHARACTER = 6.2
_WIDTHS = (
    dict.fromkeys("ijl", 2.8)
    | dict.fromkeys(" .,:;", 3.1)
    | dict.fromkeys("fItr-", 4)
    | dict.fromkeys("cksvxyz", 5.7)
    | dict.fromkeys("ABCDEGHKNOPQRSUV", 7.6)
    | dict.fromkeys("WMm\N{HORIZONTAL ELLIPSIS}", 11)
)


def text_width(text: str, *, size: float = FONT_SIZE) -> float:
    """About as wide as Helvetica and its likes draw it, in pixels."""
    return sum(_WIDTHS.get(character, _CHARACTER) for character in text) * size / FONT_SIZE


def cut(text: str, width: float, *, size: float = FONT_SIZE) -> str:
    """The text, or as much of its start as fits, with an ellipsis."""
    end, shown = len(text), text
    while end and text_width(shown, size=size) > width:
        end -= 1
        shown = f"{text[:end].rstrip()}\N{HORIZONTAL ELLIPSIS}"
    return shown


def fitting_name(names: Iterable[str], width: float, height: float) -> tuple[str, int] | None:
    """The first name that fits into a box, and its font size; None where none fits.

    A name of one character says no more than the box's look.
    """
    for name in names:
        for size in (FONT_SIZE, SMALL_FONT_SIZE):
            if len(name) > 1 and size <= height and text_width(name, size=size) <= width - _margin(size):
                return name, size
    return None


def _margin(size: int) -> int:
    """At both sides together, with the pixel between two boxes."""
    return 5 if size == FONT_SIZE else 3
