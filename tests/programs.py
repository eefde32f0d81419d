"""Training programs of the tests, before lowering and for no batch in particular."""

from __future__ import annotations

from hetsched.layout.placement import Topology
from hetsched.schedule.encoder import place_encoders
from hetsched.schedule.program import Program
from hetsched.schedule.registry import sink_lanes


def training_program(topology: Topology, *, sink: str, pipeline: str, encoder: str, num_microbatches: int) -> Program:
    """The step of a topology whose ``sink`` follows ``pipeline``, its encoders placed by the policy ``encoder``."""
    lanes = sink_lanes(topology, sink=sink, pipeline=pipeline, num_microbatches=num_microbatches)
    return place_encoders(topology, lanes, num_microbatches=num_microbatches, policy=encoder).program
