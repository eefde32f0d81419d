"""Words of messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with its noun: ``1 lane``, ``2 lanes``, ``2 microbatches``."""
    return f"{count} {noun if count == 1 else _plural(noun)}"


def numbered(noun: str, count: int) -> str:
    """The numbers of things that are counted from 0: ``lanes 0 to 3``, ``lane 0 alone``."""
    return f"{noun} 0 alone" if count == 1 else f"{_plural(noun)} 0 to {count - 1}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("ch") else "s")
