"""Sets of times, as (start, end)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Time = TypeVar("Time", int, float)


def merged(spans: Iterable[tuple[Time, Time]]) -> list[tuple[Time, Time]]:
    """Disjoint, ascending; spans that touch are one."""
    result: list[tuple[Time, Time]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((start, end))
    return result


def length(disjoint: Iterable[tuple[Time, Time]]) -> Time:
    """How long they are together."""
    return sum(end - start for start, end in disjoint)
