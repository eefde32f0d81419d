"""A timeline as text: one line a lane, time from left to right."""

from __future__ import annotations

from hetsched.schedule.action import Action, Kind
from hetsched.sim.timeline import Span, Stream, Timeline

IDLE = "."


def draw(timeline: Timeline, *, width: int = 120) -> str:
    """The compute actions of each lane on a common time axis.

    Each action starts with its name as far as it fits: the module's first letter (lower-case for the module
    that computes the loss), kind and microbatch, e.g. ``F3`` of ``llm`` and ``vF3`` of ``vision``; dots are idle time.

    Args:
        timeline: simulated or measured.
        width: columns of the time axis.
    """
    makespan = max(1, timeline.makespan_ns)
    lines = []
    for lane in range(len(timeline.program.lanes)):
        row = [IDLE] * width
        for span in timeline.stream(lane, Stream.COMPUTE):
            _paint(row, span, makespan, label=_label(timeline, span.action))
        lines.append(f"lane {lane:<3} {''.join(row)}")
    return "\n".join([*lines, _legend(timeline)])


def _paint(row: list[str], span: Span, makespan: int, *, label: str) -> None:
    """Write the span over its columns: its label, then a fill; the last column stays a boundary if there is room."""
    first = span.start_ns * len(row) // makespan
    end = span.end_ns * len(row) // makespan
    if end <= first:
        return
    fill = "-" if span.action.kind is Kind.F else "="
    text = (label + fill * (end - first))[: end - first]
    if len(text) > len(label):
        text = text[:-1] + "|"
    row[first:end] = text


def _label(timeline: Timeline, action: Action) -> str:
    producers = {edge.producer for edge in timeline.program.topology.edges}
    letter = action.module[0] if action.module in producers else ""
    if action.kind.is_collective:
        return f"{letter}R"
    window = "" if action.first == action.last else f"-{action.last}"
    return f"{letter}{action.kind}{action.first}{window}"


def _legend(timeline: Timeline) -> str:
    busy = sum(s.duration_ns for s in timeline.spans if s.stream is Stream.COMPUTE)
    lanes, makespan = len(timeline.program.lanes), timeline.makespan_ns
    idle = 1 - busy / (lanes * makespan) if makespan else 0.0
    bound = "" if timeline.gap is None else f", {timeline.gap:.1%} above the lower bound"
    return f"step {makespan / 1e6:g} ms, idle {idle:.1%} of lane time{bound}"
