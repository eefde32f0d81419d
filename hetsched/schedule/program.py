"""A program: for each lane one totally ordered list of actions, and the module graph it is about."""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.layout.placement import Topology
from hetsched.schedule.action import Action


@dataclass(frozen=True, slots=True)
class Program:
    """What every lane does in one step.

    Args:
        topology: the module graph on lanes.
        num_microbatches: microbatches of the step.
        lanes: for each lane its actions, in the order of execution.
    """

    topology: Topology
    num_microbatches: int
    lanes: tuple[tuple[Action, ...], ...]
