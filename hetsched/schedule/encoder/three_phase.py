"""``three_phase``: all encoder forwards, then the LLM, then all encoder backwards (Megatron's colocated mode)."""

from __future__ import annotations

from hetsched.layout.placement import Edge, Topology
from hetsched.schedule.action import Kind, act
from hetsched.schedule.encoder.lanes import Lanes


def three_phase(topology: Topology, edge: Edge, lanes: Lanes, num_microbatches: int) -> None:
    """Adds the encoder's actions to the lanes, every microbatch on every lane that has it."""
    encoder = topology.module(edge.producer)
    # The last stage first, so that forwards put before others keep the stages in order.
    for stage in reversed(range(encoder.num_stages)):
        forwards = [act(encoder.name, stage, Kind.F, m) for m in range(num_microbatches)]
        backwards = [act(encoder.name, stage, Kind.B, m) for m in range(num_microbatches) if encoder.has_backward]
        for lane in encoder.lanes(stage):
            lanes[lane][:0] = forwards
            lanes[lane] += backwards
