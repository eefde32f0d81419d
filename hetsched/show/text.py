"""A timeline as text: one line a lane, time from left to right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hetsched.schedule.action import Action, Kind
from hetsched.show.label import Labels
from hetsched.show.ticks import tick_times
from hetsched.show.unit import Unit, fitting_unit
from hetsched.sim.bubble import bubble_fraction, bubbles
from hetsched.sim.live import peak_live_microbatches
from hetsched.sim.timeline import Span, Stream, Timeline

IDLE = "."
_FILL = {Kind.F: "-", Kind.W: "~"}
_OTHER_FILL = "="
_COLUMNS_PER_TICK = 12
_WORDS = {Kind.F: "forward", Kind.B: "backward", Kind.I: "input gradient", Kind.W: "weight gradient"}
_READABLE = 3
"""Columns from which on a box can be read without its whole name."""


def draw(timeline: Timeline, *, width: int = 120, unit: Unit | None = None) -> str:
    """The compute actions of each lane on a common time axis.

    Each action starts with its name (see ``Labels``) where there is room, otherwise with its kind, or, of a module that
    produces for others, with the module's letter. A column of several actions shows the one that takes most
    of it. Dots are idle time. At the right are the lane's idle time and the most microbatches that are alive on it; see
    ``peak_live_microbatches``. The last line is a key to all this.

    Args:
        timeline: simulated or measured.
        width: columns of the time axis.
        unit: in which times are written; one that fits the makespan by default.
    """
    makespan = max(1, timeline.makespan_ns)
    unit = unit or fitting_unit(makespan)
    labels = Labels(timeline.program)
    live = peak_live_microbatches(timeline.program)
    heads = [f"lane {lane}" for lane in range(len(live))]
    indent = max(map(len, heads), default=4) + 2
    lines = ["time".ljust(indent) + _ruler(makespan, width, unit)]
    for lane, bubble in enumerate(bubbles(timeline)):
        row = _row(timeline.stream(lane, Stream.COMPUTE), labels, makespan=makespan, width=width)
        lines.append(f"{heads[lane]:<{indent}}{row}  {bubble.total / makespan:4.0%} idle, {live[lane]} live")
    lines += [_legend(timeline, labels, unit), *_hint(timeline, labels, width=width), _key(timeline, labels)]
    return "\n".join(lines)


def _row(spans: Iterable[Span], labels: Labels, *, makespan: int, width: int) -> str:
    """One lane: names over the columns of each span, and, where spans share a column, the kind of the longest."""
    row: list[str] = [IDLE] * width
    shared: dict[int, Counter[str]] = {}
    for span in spans:
        first, end = (time * width // makespan for time in (span.start_ns, span.end_ns))
        names = labels.of(span.action)
        if end > first:
            row[first:end] = _paint(names, end - first, fill=_FILL.get(span.action.kind, _OTHER_FILL))
        elif span.duration_ns:
            shared.setdefault(first, Counter())[names[-1]] += span.duration_ns
    for column, kinds in shared.items():
        if row[column] == IDLE:
            row[column] = max(sorted(kinds), key=lambda name: kinds[name])
    return "".join(row)


def _paint(names: tuple[str, ...], length: int, *, fill: str) -> str:
    """The longest name that fits, then a fill; the last column is a boundary if there is room."""
    # A name that begins with a digit would run into the one before it if that had no boundary.
    name = next(name for name in names if len(name) + name[0].isdigit() <= length)
    text = name + fill * (length - len(name))
    return text[:-1] + "|" if len(name) < length and length > 2 else text


def _ruler(makespan: int, width: int, unit: Unit) -> str:
    """Round times above the columns in which they lie."""
    row = [" "] * (width + 16)
    for time_ns, text in tick_times(makespan, unit=unit, most=width / _COLUMNS_PER_TICK):
        column = time_ns * width // makespan
        row[column : column + 16] = f"{text:<16}"
    return "".join(row).rstrip()


def _hint(timeline: Timeline, labels: Labels, *, width: int) -> list[str]:
    """A line that says what helps where a quarter of the boxes or more are too narrow to be told apart."""
    makespan, num_boxes, num_narrow = max(1, timeline.makespan_ns), 0, 0
    for lane in range(len(timeline.program.lanes)):
        for span in timeline.stream(lane, Stream.COMPUTE):
            if span.duration_ns:
                first, end = (time * width // makespan for time in (span.start_ns, span.end_ns))
                num_boxes += 1
                num_narrow += end - first < min(_READABLE, len(labels.of(span.action)[0]))
    if 4 * num_narrow < max(1, num_boxes):
        return []
    return [f"{num_narrow} of {num_boxes} boxes are too narrow for their names: try a larger --width, or --format html"]


def _legend(timeline: Timeline, labels: Labels, unit: Unit) -> str:
    bound = "" if timeline.gap is None else f", {timeline.gap:.1%} above the lower bound"
    modules = "".join(f"; {prefix} is {name}" for name, prefix in labels.prefixes.items())
    makespan = unit.text(timeline.makespan_ns)
    # Only a simulation knows the bound.
    simulated = "" if timeline.lower_bound_ns is None else " simulated"
    return f"step {makespan}{simulated}, idle {bubble_fraction(timeline):.1%} of lane time{bound}{modules}"


def _key(timeline: Timeline, labels: Labels) -> str:
    """What the names, the fills and ``live`` mean, as far as they occur here."""
    topology = timeline.program.topology
    actions = {action for lane in timeline.program.lanes for action in lane if action.kind.is_compute}
    parts = {part for action in actions for part in action.flat()}
    kinds = [kind for kind in _WORDS if any(part.kind is kind for part in parts)]
    has_stages = any(_names_stage(part, labels) for part in parts)
    where = " in stage 1" if has_stages else ""
    texts = [f"{kind}{_FILL.get(kind, _OTHER_FILL)} {_WORDS[kind]}" for kind in kinds]
    if kinds and kinds[0] is Kind.F:
        texts[0] = f"{'1' if has_stages else ''}F0- forward of microbatch 0{where}"
    if any(part.first != part.last for part in parts):
        texts.append("0-1 a window of microbatches")
    if any(action.parts for action in actions):
        texts.append("a&b a fused pair")
    counted = [module.name for module in topology.modules if not module.takes_items]
    ends = " or ".join(kind for kind in (Kind.B, Kind.W) if kind in kinds) or "F"
    what = "(stage, microbatch) pairs" if has_stages else "microbatches"
    live = f"live: most {what} of {', '.join(counted)} held at once, F to end of {ends}"
    return f"key: {', '.join([*texts, '| end', f'{IDLE} idle'])}; {live}"


def _names_stage(action: Action, labels: Labels) -> bool:
    """Whether the stage stands before the kind in the action's name."""
    name = labels.of(action)[0].removeprefix(labels.prefixes.get(action.module, ""))
    return name[0].isdigit()
