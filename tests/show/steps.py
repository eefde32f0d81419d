"""Timelines to draw."""

from __future__ import annotations

from collections.abc import Callable

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.table import ActionTable
from hetsched.show.compare import Comparison, compare, scaled
from hetsched.show.layer import Layer
from hetsched.sim.costs import Costs, Link
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline
from tests.programs import training_program

MS = 1_000_000


def colocated_step(num_lanes: int = 4, num_microbatches: int = 4, *, encoder: str = "three_phase") -> Timeline:
    """1F1B with an encoder on every lane, and messages of 0.1 ms."""
    lanes = range(num_lanes)
    vision = ModuleOnLanes("vision", (tuple((lane,) for lane in lanes),), takes_items=True)
    llm = ModuleOnLanes("llm", tuple(((lane,),) for lane in lanes))
    topology = Topology(num_lanes, (vision, llm), (Edge("vision", "llm"),))
    program = lower_transfers(
        training_program(topology, sink="llm", pipeline="1f1b", encoder=encoder, num_microbatches=num_microbatches)
    )
    durations = {"llm:F": 10 * MS, "llm:B": 20 * MS, "vision:F": 4 * MS, "vision:B": 8 * MS}
    links = {"default": Link(latency_ns=MS // 10)}
    return simulate(program, Costs(ActionTable.parse(durations), links=links))


def changed(timeline: Timeline, change: Callable[[Span], Span | None]) -> Timeline:
    """The timeline with every span changed, or dropped where the change is None."""
    spans = (change(span) for span in timeline.spans)
    return make_timeline(timeline.program, [span for span in spans if span is not None])


def scaled_comparison() -> tuple[list[Layer], Comparison]:
    """A prediction whose times are four times those that were measured, and were scaled to them."""
    timeline = colocated_step()
    comparison = compare(timeline, scaled(timeline, 0.25), is_scaled=True)
    return [Layer("predicted", comparison.predicted), Layer("measured", comparison.measured)], comparison


def later_from(timeline: Timeline, action: str, by_ns: int) -> Timeline:
    """The timeline with one compute action longer, and all that follows it on its lane later."""
    (first,) = (s for s in timeline.spans if str(s.action) == action and s.stream is Stream.COMPUTE)

    def change(span: Span) -> Span:
        if span.lane != first.lane or span.start_ns < first.start_ns or span.stream is not Stream.COMPUTE:
            return span
        start = span.start_ns if span == first else span.start_ns + by_ns
        return span._replace(start_ns=start, end_ns=span.end_ns + by_ns)

    return changed(timeline, change)
