"""A program without its transfers, as the compiled placement passes take it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hetsched import _core
from hetsched.layout.placement import Topology
from hetsched.schedule.action import KINDS, Action, Kind
from hetsched.schedule.encoder.credits import Credit


def bare_program(
    topology: Topology, lanes: Iterable[Sequence[Action]], *, num_microbatches: int, credits: Iterable[Credit] = ()
) -> _core.BareProgram:
    """The compute actions of each lane, in the core's form.

    Args:
        topology: the module graph on lanes.
        lanes: the actions, of encoders those that are placed.
        num_microbatches: of the step.
        credits: of encoders that are placed; actions wait for them too.
    """
    numbers = {module.name: number for number, module in enumerate(topology.modules)}
    every = tuple(map(tuple, lanes))
    return _core.BareProgram(
        lanes=every,
        num_microbatches=num_microbatches,
        modules=[(module.stages, module.has_backward, module.takes_items) for module in topology.modules],
        edges=[(numbers[edge.producer], numbers[edge.consumer], edge.stage) for edge in topology.edges],
        kinds=KINDS,
        names=numbers,
        waits=list(_waits(every, credits)),
    )


def _waits(lanes: Sequence[Sequence[Action]], credits: Iterable[Credit]) -> Iterator[tuple[int, int]]:
    """The numbers of (action, one that waits for its end), which are counted from lane to lane."""
    every = ((lane, action) for lane, actions in enumerate(lanes) for action in actions)
    number_of = {(a.module, a.kind, a.first, lane): number for number, (lane, a) in enumerate(every)}
    for credit in credits:
        for closing in credit.closing_lanes:
            for opening in credit.opening_lanes:
                yield (
                    number_of[credit.module, Kind.B, credit.closed, closing],
                    number_of[credit.module, Kind.F, credit.opened, opening],
                )
