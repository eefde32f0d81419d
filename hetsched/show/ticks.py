"""Round times for an axis."""

from __future__ import annotations

from hetsched.show.unit import Unit


def tick_times(end_ns: int, *, unit: Unit, most: int = 10) -> list[tuple[int, str]]:
    """(time, text) of at most ``most`` + 1 round times from 0 to ``end_ns``."""
    step = round_step(end_ns / most / unit.ns)
    number_of = int(end_ns / unit.ns / step + 1e-9) + 1 if end_ns else 1
    return [(round(i * step * unit.ns), f"{i * step:g}") for i in range(number_of)]


def round_step(smallest: float) -> float:
    """The first of 1, 2, 5, 10, ... times a power of ten that is not smaller."""
    power = 10.0 ** len(str(int(smallest))) if smallest >= 1 else 1.0
    while power > smallest > 0:
        power /= 10
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= smallest)
