"""What a picture shows: one timeline, or several over each other."""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class Layer:
    """A named timeline, e.g. the predicted or the measured one of a step."""

    name: str
    timeline: Timeline
