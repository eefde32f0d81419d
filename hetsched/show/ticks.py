"""Round times for an axis."""

from __future__ import annotations

from itertools import count, takewhile

from hetsched.show.unit import Unit


def tick_times(end_ns: int, *, unit: Unit, most: float = 10) -> list[tuple[int, str]]:
    """(time, text) of at most ``most`` + 1 round times from 0 to ``end_ns``, which is not 0."""
    step = _round_step(end_ns / most / unit.ns)
    # So many digits that large times are written in full, and no rounding of the step shows.
    times = ((round(i * step * unit.ns), f"{i * step:.15g}") for i in count())
    return list(takewhile(lambda tick: tick[0] <= end_ns, times))


def _round_step(smallest: float) -> float:
    """The first of 1, 2, 5, 10, ... times a power of ten that is not smaller."""
    power = 10.0 ** len(str(int(smallest))) if smallest >= 1 else 1.0
    while power > smallest:
        power /= 10
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= smallest)
