"""From names in a plan to programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from hetsched.layout.placement import StageOrder, Topology
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.dualpipev import dualpipev
from hetsched.schedule.gpipe import gpipe
from hetsched.schedule.interleaved import interleaved
from hetsched.schedule.one_f_one_b import one_f_one_b
from hetsched.schedule.program import Program
from hetsched.schedule.zb_h1 import zb_h1
from hetsched.schedule.zb_v import zb_v

Rows = tuple[tuple[Action, ...], ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline schedule and what it asks of a layout.

    Args:
        generate: ``(num_lanes, num_microbatches, *, module)`` and, if ``num_virtual`` is None, ``num_virtual``
            to each lane's compute actions.
        num_virtual: virtual stages per lane; None if any number will do.
        order: how stages lie on lanes.
        splits_backward: whether it has I and W in place of B.
    """

    generate: Callable[..., Rows]
    num_virtual: int | None = 1
    order: StageOrder = StageOrder.LOOP
    splits_backward: bool = False

    def rows(self, num_lanes: int, num_microbatches: int, *, module: str, num_virtual: int) -> Rows:
        """For each of ``num_lanes`` pipeline ranks its compute actions."""
        if self.num_virtual is None:
            return self.generate(num_lanes, num_microbatches, module=module, num_virtual=num_virtual)
        return self.generate(num_lanes, num_microbatches, module=module)


PIPELINES: Mapping[str, Pipeline] = MappingProxyType(
    {
        "gpipe": Pipeline(gpipe),
        "1f1b": Pipeline(one_f_one_b),
        "interleaved": Pipeline(interleaved, num_virtual=None),
        "zb-h1": Pipeline(zb_h1, splits_backward=True),
        "zb-v": Pipeline(zb_v, num_virtual=2, order=StageOrder.V, splits_backward=True),
        "dualpipev": Pipeline(dualpipev, num_virtual=2, order=StageOrder.V, splits_backward=True),
    }
)


def sink_lanes(topology: Topology, *, sink: str, pipeline: str, num_microbatches: int) -> list[list[Action]]:
    """For each lane the actions of the module that computes the loss.

    Args:
        topology: the module graph on lanes.
        sink: that module; its stages follow ``pipeline``.
        pipeline: a name in ``PIPELINES``.
        num_microbatches: microbatches of the step.
    """
    module = topology.module(sink)
    num_lanes = len(set(module.stages))
    rows = PIPELINES[pipeline].rows(
        num_lanes, num_microbatches, module=sink, num_virtual=module.num_stages // num_lanes
    )
    lanes: list[list[Action]] = [[] for _ in range(topology.num_lanes)]
    for pipeline_rank, row in enumerate(rows):
        for lane in module.lanes(pipeline_rank):
            lanes[lane] += row
    return lanes


def forwards_only(program: Program) -> Program:
    """The program of compute actions without its backwards."""
    lanes = tuple(
        tuple(part for action in lane for part in action.flat() if part.kind is Kind.F) for lane in program.lanes
    )
    return replace(program, lanes=lanes)
