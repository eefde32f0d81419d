"""Programs written out in a test, and changed by it."""

from __future__ import annotations

from collections.abc import Sequence

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import parse_action
from hetsched.schedule.program import Program


def pipeline(*lanes: Sequence[int], name: str = "llm") -> ModuleOnLanes:
    """A module whose stage s is on the gang ``lanes[s]``."""
    return ModuleOnLanes(name, tuple((tuple(gang),) for gang in lanes))


def replicated(*lanes: int, name: str = "vision", has_backward: bool = True) -> ModuleOnLanes:
    """An encoder of one stage, with a replica on each lane."""
    return ModuleOnLanes(name, (tuple((lane,) for lane in lanes),), has_backward=has_backward, takes_items=True)


def literal(
    modules: Sequence[ModuleOnLanes], num_microbatches: int, *lanes: str, edges: Sequence[tuple[str, str, int]] = ()
) -> Program:
    """A program whose lanes are texts of actions; ``2F0`` without a module is of ``llm``."""
    topology = Topology(len(lanes), tuple(modules), tuple(Edge(*edge) for edge in edges))
    rows = (tuple(parse_action(text if ":" in text else f"llm:{text}") for text in lane.split()) for lane in lanes)
    return Program(topology, num_microbatches, tuple(rows))


def with_lane(program: Program, lane: int, actions: str) -> Program:
    """The program with another list on a lane."""
    row = tuple(parse_action(text if ":" in text else f"llm:{text}") for text in actions.split())
    return Program(program.topology, program.num_microbatches, (*program.lanes[:lane], row, *program.lanes[lane + 1 :]))
