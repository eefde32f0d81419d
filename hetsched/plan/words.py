"""Words of messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with its noun: ``1 lane``, ``2 lanes``, ``2 microbatches``."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{count} {noun if count == 1 else plural}"
