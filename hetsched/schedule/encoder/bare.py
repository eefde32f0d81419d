"""A program without its transfers, as the compiled placement passes take it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hetsched import _core
from hetsched.layout.placement import Topology
from hetsched.schedule.action import KINDS, Action


def bare_program(topology: Topology, lanes: Iterable[Sequence[Action]], *, num_microbatches: int) -> _core.BareProgram:
    """The compute actions of each lane, in the core's form."""
    numbers = {module.name: number for number, module in enumerate(topology.modules)}
    return _core.BareProgram(
        lanes=tuple(map(tuple, lanes)),
        num_microbatches=num_microbatches,
        modules=[(module.stages, module.has_backward, module.takes_items) for module in topology.modules],
        edges=[(numbers[edge.producer], numbers[edge.consumer], edge.stage) for edge in topology.edges],
        kinds=KINDS,
        names=numbers,
    )
