"""From names in a plan to programs."""

from __future__ import annotations

from collections.abc import Callable

from hetsched.layout.placement import Topology
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder import place_encoders
from hetsched.schedule.one_f_one_b import one_f_one_b
from hetsched.schedule.program import Program

Generator = Callable[..., tuple[tuple[Action, ...], ...]]

PIPELINES: dict[str, Generator] = {"1f1b": one_f_one_b}


def training_program(topology: Topology, *, sink: str, pipeline: str, encoder: str, num_microbatches: int) -> Program:
    """One training step, before lowering.

    Args:
        topology: the module graph on lanes.
        sink: the module that computes the loss; its stages follow ``pipeline``.
        pipeline: a name in ``PIPELINES``.
        encoder: a name in ``hetsched.schedule.encoder.POLICIES``.
        num_microbatches: microbatches of the step.
    """
    module = topology.module(sink)
    rows = PIPELINES[pipeline](module.num_stages, num_microbatches, module=sink)
    lanes: list[list[Action]] = [[] for _ in range(topology.num_lanes)]
    for stage, row in enumerate(rows):
        for lane in module.lanes(stage):
            lanes[lane] += row
    return place_encoders(topology, lanes, num_microbatches=num_microbatches, policy=encoder)


def evaluation_program(topology: Topology, *, sink: str, pipeline: str, encoder: str, num_microbatches: int) -> Program:
    """The forwards of ``training_program`` alone; see there."""
    program = training_program(
        topology, sink=sink, pipeline=pipeline, encoder=encoder, num_microbatches=num_microbatches
    )
    lanes = tuple(tuple(a for a in lane if a.kind is Kind.F) for lane in program.lanes)
    return Program(topology, num_microbatches, lanes)
