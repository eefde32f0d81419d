"""The unit of time that a reader meets, and the integer nanoseconds behind it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of time.

    Args:
        ns: nanoseconds of one.
        name: written after a number; empty for the abstract unit of costs that somebody made up.
    """

    ns: int
    name: str = ""

    def of(self, time_ns: int) -> int | float:
        """A time in this unit: an int where it is whole, otherwise the nearest float."""
        time = Fraction(time_ns, self.ns)
        return int(time) if time.denominator == 1 else float(time)

    def text(self, time_ns: int) -> str:
        """A time as it is written: whole numbers in full, otherwise four digits after the point, or from the first."""
        time = self.of(time_ns)
        if isinstance(time, int):
            digits = f"{time}"
        else:
            digits = f"{time:.4f}".rstrip("0").rstrip(".") if abs(time) >= 1 else f"{time:.4g}"
        return f"{digits} {self.name}".rstrip()


NANOSECOND = Unit(1, "ns")
MILLISECOND = Unit(1_000_000, "ms")
_UNITS = (Unit(1_000_000_000, "s"), MILLISECOND, Unit(1_000, "us"))


def fitting_unit(time_ns: int) -> Unit:
    """The largest unit of which the time has at least one."""
    return next((unit for unit in _UNITS if time_ns >= unit.ns), NANOSECOND)
