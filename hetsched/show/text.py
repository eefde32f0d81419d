"""A timeline as text: one line a lane, time from left to right."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from hetsched.schedule.action import Action, Kind
from hetsched.show.label import COLLECTIVES, WORDS, Labels
from hetsched.show.ticks import tick_times
from hetsched.show.unit import Unit, fitting_unit
from hetsched.sim.bubble import bubble_fraction, bubbles
from hetsched.sim.live import peak_live_microbatches
from hetsched.sim.timeline import Span, Stream, Timeline

IDLE = "."
_FILL = {Kind.F: "-", Kind.W: "~"}
_OTHER_FILL = "="
_COLUMNS_PER_TICK = 12
_READABLE = 3
"""Columns from which on a box can be read without its whole name."""


class _Box(NamedTuple):
    """Columns of one action, or the column of several; names from long to short."""

    first: int
    end: int
    names: tuple[str, ...]
    fill: str = ""


def draw(
    timeline: Timeline,
    *,
    width: int = 120,
    unit: Unit | None = None,
    end_ns: int | None = None,
    columns: int | None = None,
    note: str = "",
) -> str:
    """The compute actions of each lane on a common time axis.

    Each action starts with its name (see ``Labels``) where there is room, otherwise with its kind, or, of a module that
    produces for others, with the module's letter. A column of several actions shows the one that takes most
    of it. Dots are idle time. At the right are the lane's idle time and the most microbatches that are alive on it; see
    ``peak_live_microbatches``. The last line is a key to all this.

    Args:
        timeline: simulated or measured.
        width: columns of the time axis.
        unit: in which times are written; one that fits the makespan by default.
        end_ns: where the axis ends, if not at the makespan.
        columns: of the terminal, for the lines that are sentences; without it they are as long as they are.
        note: of the costs that it was simulated with.
    """
    makespan = max(1, timeline.makespan_ns)
    end, unit = end_ns or makespan, unit or fitting_unit(makespan)
    labels = Labels(timeline.program)
    live = peak_live_microbatches(timeline.program)
    heads = [f"lane {lane}" for lane in range(len(live))]
    indent = max(map(len, heads), default=4) + 2
    lines = ["time".ljust(indent) + _ruler(end, width, unit)]
    for lane, bubble in enumerate(bubbles(timeline)):
        row = _row(timeline.stream(lane, Stream.COMPUTE), labels, end_ns=end, width=width)
        lines.append(f"{heads[lane]:<{indent}}{row}  {bubble.total / makespan:4.0%} idle, {live[lane]} live")
    sentences = [
        _legend(timeline, labels, unit, note),
        *_hint(timeline, labels, end_ns=end, width=width),
        _key(timeline, labels),
    ]
    return "\n".join([*lines, *(wrapped(sentence, columns) for sentence in sentences)])


def wrapped(sentence: str, columns: int | None) -> str:
    """A sentence as lines of a terminal, broken at spaces."""
    if columns is None:
        return sentence
    return textwrap.fill(sentence, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _row(spans: Iterable[Span], labels: Labels, *, end_ns: int, width: int) -> str:
    """One lane: names over the columns of each span, and, where spans share a column, the kind of the longest."""
    boxes: list[_Box] = []
    shared: dict[int, Counter[str]] = {}
    for span in spans:
        first, end = (time * width // end_ns for time in (span.start_ns, span.end_ns))
        names = labels.of(span.action)
        if end > first:
            boxes.append(_Box(first, end, names, _FILL.get(span.action.kind, _OTHER_FILL)))
        elif span.duration_ns:
            shared.setdefault(first, Counter())[names[-1]] += span.duration_ns
    covered = {column for box in boxes for column in range(box.first, box.end)}
    for column in shared.keys() - covered:
        most = max(sorted(shared[column]), key=lambda name: shared[column][name])
        boxes.append(_Box(column, column + 1, (most,)))
    row = [IDLE] * width
    for box in sorted(boxes):
        row[box.first : box.end] = _paint(box, before=row[box.first - 1] if box.first else IDLE)
    return "".join(row)


def _paint(box: _Box, *, before: str) -> str:
    """The longest name that fits and is not read as one with what stands before, then a fill.

    The last column is a boundary if there is room. A module's letter that fills a box of one column would be read as
    that of the name behind it, so that a boundary comes between.
    """
    length = box.end - box.first
    start = "|" if before.islower() and not box.names[-1].islower() and length > 1 else ""
    name = next(name for name in box.names if _fits(name, length - len(start), before=start or before))
    text = start + name + box.fill * (length - len(start) - len(name))
    return text[:-1] + "|" if len(text) > len(start + name) and length > 2 else text


def _fits(name: str, length: int, *, before: str) -> bool:
    if len(name) < 2:
        return True
    if name[0].isdigit():
        return len(name) < length and not before.isalnum()
    # A module's letter and a kind alone would be read as two boxes, or as one with a number that follows.
    return len(name) + (not name[-1].isdigit()) <= length


def _ruler(end_ns: int, width: int, unit: Unit) -> str:
    """Round times above the columns in which they lie."""
    row = [" "] * (width + 16)
    for time_ns, text in tick_times(end_ns, unit=unit, most=width / _COLUMNS_PER_TICK):
        column = time_ns * width // end_ns
        row[column : column + 16] = f"{text:<16}"
    return "".join(row).rstrip()


def _hint(timeline: Timeline, labels: Labels, *, end_ns: int, width: int) -> list[str]:
    """A line that says what helps where a quarter of the boxes or more are too narrow to be told apart."""
    num_boxes = num_narrow = 0
    for lane in range(len(timeline.program.lanes)):
        for span in timeline.stream(lane, Stream.COMPUTE):
            if span.duration_ns:
                first, end = (time * width // end_ns for time in (span.start_ns, span.end_ns))
                num_boxes += 1
                num_narrow += end - first < min(_READABLE, len(labels.of(span.action)[0]))
    if 4 * num_narrow < max(1, num_boxes):
        return []
    return [f"{num_narrow} of {num_boxes} boxes are too narrow for their names: try a larger --width, or --format html"]


def _legend(timeline: Timeline, labels: Labels, unit: Unit, note: str) -> str:
    bound = "" if timeline.gap is None else f", {timeline.gap:.1%} above the lower bound"
    modules = "".join(f"; {prefix} is {name}" for name, prefix in labels.prefixes.items())
    makespan = unit.text(timeline.makespan_ns)
    # Only a simulation knows the bound.
    simulated = "" if timeline.lower_bound_ns is None else f" simulated ({note})" if note else " simulated"
    return f"step {makespan}{simulated}, idle {bubble_fraction(timeline):.1%} of lane time{bound}{modules}"


def _key(timeline: Timeline, labels: Labels) -> str:
    """What the names, the fills and ``live`` mean, as far as they occur here."""
    topology = timeline.program.topology
    actions = {action for lane in timeline.program.lanes for action in lane if action.kind.is_compute}
    # Collectives that take no time are not drawn.
    actions |= {span.action for span in timeline.spans if span.action.kind.is_collective and span.duration_ns}
    parts = {part for action in actions for part in action.flat()}
    kinds = [kind for kind in WORDS if any(part.kind is kind for part in parts)]
    has_stages = any(_names_stage(part, labels) for part in parts)
    where = " in stage 1" if has_stages else ""
    texts = [f"{COLLECTIVES.get(kind, kind)}{_FILL.get(kind, _OTHER_FILL)} {WORDS[kind]}" for kind in kinds]
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
