"""What a picture shows: one timeline, or several over each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetsched.show.compare import Comparison
from hetsched.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Layer:
    """A named timeline, e.g. the predicted or the measured one of a step."""

    name: str
    timeline: Timeline


def scaling(comparison: Comparison | None) -> str:
    """What a picture says after the name or the step of what was predicted; empty where its times are as they were."""
    if comparison is None or math.isclose(comparison.scale, 1.0):
        return ""
    return f" (times scaled by {comparison.scale:.3g} to the same work)"
