"""Timelines as an SVG picture: a row a lane, time from left to right.

The blocks of one look on one lane are one path, so that a picture of thousands of actions stays small and opens
at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from hetsched.schedule.action import Action, Kind
from hetsched.show.compare import Comparison
from hetsched.show.fit import BOLD, FONT_SIZE, SMALL_FONT_SIZE, cut, fitting_name, text_width
from hetsched.show.label import Labels
from hetsched.show.layer import Layer, scaling
from hetsched.show.legend import legend_of
from hetsched.show.needs import compute_spans
from hetsched.show.palette import (
    CRITICAL,
    GRID,
    LANE,
    LINES,
    MUTED,
    SENT_BACKWARD,
    SENT_FORWARD,
    TEXT,
    TILE,
    Hatch,
    Look,
    Palette,
)
from hetsched.show.ticks import tick_times
from hetsched.show.unit import MILLISECOND, Unit
from hetsched.sim.bubble import bubble_fraction, bubbles
from hetsched.sim.critical import critical_path
from hetsched.sim.timeline import Span, Stream

_WIDTH, _LEFT, _RIGHT = 1280, 24, 76
_NARROWEST = 0.5
_TRANSFERS = (
    ("forward", (Kind.SEND_F, Kind.RECV_F), SENT_FORWARD),
    ("backward", (Kind.SEND_B, Kind.RECV_B), SENT_BACKWARD),
)
_FONT = "font-family=\"'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif\""


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where things lie, in pixels.

    Args:
        left, width: of the time axis.
        top: of the first lane.
        bar, wire, gap: heights of a lane's blocks in one layer, of its transfers, and between lanes.
        num_layers: drawn under each other in a lane.
        end_ns: the time at the right end.
    """

    left: int
    width: int
    top: int
    bar: int
    wire: int
    gap: int
    num_layers: int
    end_ns: int

    @property
    def layer_height(self) -> int:
        return self.bar + self.wire + 4

    @property
    def lane_height(self) -> int:
        return self.layer_height * self.num_layers + self.gap

    def x(self, time_ns: int) -> float:
        return self.left + self.width * time_ns / self.end_ns

    def y(self, lane: int, layer: int) -> int:
        return self.top + lane * self.lane_height + layer * self.layer_height


def to_svg(
    layers: Sequence[Layer], *, title: str, unit: Unit = MILLISECOND, comparison: Comparison | None = None
) -> str:
    """An SVG document.

    Args:
        layers: timelines on one time axis, of as many lanes; the critical path drawn is that of the first.
        title: what is shown.
        unit: in which times are written.
        comparison: of the first two layers.
    """
    num_lanes = max(len(layer.timeline.program.lanes) for layer in layers)
    palette = Palette(layer.timeline.program for layer in layers)
    frame = _make_frame(layers, num_lanes)
    subtitles = [*_subtitles(layers, unit, comparison), *_hint(layers, frame)]
    frame = replace(frame, top=76 + 16 * len(subtitles))
    bottom = frame.y(num_lanes, 0)
    legend, legend_height = _legend(layers, palette, bottom + 32)
    height = bottom + 32 + legend_height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'{_FONT} font-size="{FONT_SIZE}" fill="{TEXT}">',
        f"<title>{escape(title)}</title>",
        "<style>@media print{svg{width:100%;height:auto}}</style>",
        "<defs>",
        *(_pattern(number, look) for number, look in enumerate(palette.looks) if look.hatch is not Hatch.NONE),
        "</defs>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="34" font-size="18" font-weight="600">{escape(_cut(title, size=18 * BOLD))}</text>',
        *(
            f'<text x="{_LEFT}" y="{54 + 16 * row}" font-size="12" fill="{MUTED}">{escape(_cut(text, size=12))}</text>'
            for row, text in enumerate(subtitles)
        ),
        *_axis(frame, bottom, unit),
    ]
    for index, layer in enumerate(layers):
        parts += _layer(layer, index, frame, palette)
    parts += _critical(layers[0], frame)
    parts += legend
    return "\n".join([*parts, "</svg>", ""])


def _make_frame(layers: Sequence[Layer], num_lanes: int) -> _Frame:
    room = max(8, min(30, 900 // max(1, num_lanes * len(layers)) - 6))
    wire = 4 if room >= 16 else 2
    longest = max((len(layer.name) for layer in layers), default=0) if len(layers) > 1 else 0
    left = _LEFT + 56 + round(text_width("0" * longest))
    end = max(1, *(layer.timeline.makespan_ns for layer in layers))
    return _Frame(left, _WIDTH - left - _RIGHT, 0, room, wire, 12 if room >= 16 else 3, len(layers), end)


def _cut(text: str, *, size: float) -> str:
    return cut(text, _WIDTH - 2 * _LEFT, size=size)


def _subtitles(layers: Sequence[Layer], unit: Unit, comparison: Comparison | None) -> Iterator[str]:
    """A line for each layer."""
    for index, layer in enumerate(layers):
        timeline = layer.timeline
        share = bubble_fraction(timeline)
        bound = "" if timeline.gap is None else f", {timeline.gap:.1%} above the lower bound"
        name = f"{layer.name} " if len(layers) > 1 else ""
        step = unit.text(timeline.makespan_ns) + (scaling(comparison) if index == 0 else "")
        yield f"{name}step {step}, idle {share:.1%} of lane time{bound}"


def _hint(layers: Iterable[Layer], frame: _Frame) -> Iterator[str]:
    """A line that says what helps where boxes have no names."""
    num_boxes, num_unnamed = 0, 0
    for layer in layers:
        labels = Labels(layer.timeline.program)
        for span in compute_spans(layer.timeline):
            if span.end_ns > span.start_ns:
                num_boxes += 1
                num_unnamed += not _names_of(span, frame, labels)
    if num_unnamed:
        yield f"{num_unnamed} of {num_boxes} boxes too narrow for names; see --format html"


def _names_of(span: Span, frame: _Frame, labels: Labels) -> list[tuple[Action, str, int]]:
    """The parts of a box, each with its name and the size of its font; none where one of them does not fit."""
    width = frame.width * (span.end_ns - span.start_ns) / frame.end_ns
    if width < SMALL_FONT_SIZE:
        return []
    parts = span.action.parts or (span.action,)
    found = [(part, fitting_name(labels.of(part), width, frame.bar // len(parts))) for part in parts]
    named = [(part, *name) for part, name in found if name is not None]
    return named if len(named) == len(parts) else []


def _pattern(number: int, look: Look) -> str:
    lines = "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in LINES[look.hatch])
    return (
        f'<pattern id="h{number}" width="{TILE}" height="{TILE}" patternUnits="userSpaceOnUse">'
        f'<rect width="{TILE}" height="{TILE}" fill="{look.fill}"/>'
        f'<path d="{lines}" stroke="{look.ink}" stroke-opacity=".38" stroke-width="1" fill="none"/></pattern>'
    )


def _paint(number: int, look: Look) -> str:
    return look.fill if look.hatch is Hatch.NONE else f"url(#h{number})"


def _axis(frame: _Frame, bottom: int, unit: Unit) -> Iterator[str]:
    """Lines at round times, their texts above."""
    # A nanosecond cannot be divided: of a step that takes no time there is one tick.
    times = tick_times(frame.end_ns, unit=unit) if frame.end_ns > 1 else [(0, "0")]
    ticks = [(frame.x(time), text) for time, text in times]
    lines = "".join(f"M{x:.1f} {frame.top - 8}V{bottom - frame.gap + 4}" for x, _ in ticks)
    yield f'<path d="{lines}" stroke="{GRID}"/>'
    yield f'<g text-anchor="middle" fill="{MUTED}">'
    for x, text in ticks:
        yield f'<text x="{x:.1f}" y="{frame.top - 14}">{text}</text>'
    if unit.name:
        yield f'<text x="{frame.left - 14}" y="{frame.top - 14}" text-anchor="end">{unit.name}</text>'
    yield "</g>"


def _layer(layer: Layer, index: int, frame: _Frame, palette: Palette) -> Iterator[str]:
    labels, timeline = Labels(layer.timeline.program), layer.timeline
    makespan = max(1, timeline.makespan_ns)
    for lane, bubble in enumerate(bubbles(timeline)):
        y, middle = frame.y(lane, index), frame.y(lane, index) + frame.bar / 2 + 4
        size = 'font-size="8" ' if frame.layer_height < 12 else ""
        yield f'<rect x="{frame.left}" y="{y}" width="{frame.width}" height="{frame.bar}" fill="{LANE}"/>'
        if index == 0:
            yield f'<text {size}x="24" y="{middle:g}">lane {lane}</text>'
        if frame.num_layers > 1:
            at = f'x="{frame.left - 10}" y="{middle:g}" text-anchor="end"'
            yield f'<text {size}{at} fill="{MUTED}">{escape(layer.name)}</text>'
        idle = f"{bubble.total / makespan:.0%} idle"
        x = _WIDTH - _RIGHT + 10
        yield f'<text {size}x="{x}" y="{middle:g}" fill="{MUTED}">{idle}</text>'
        yield from _blocks(timeline.stream(lane, Stream.COMPUTE), y, frame, palette)
        yield from _names(timeline.stream(lane, Stream.COMPUTE), y, frame, palette, labels)
        for stream in (Stream.SEND, Stream.RECEIVE):
            yield from _wires(timeline.stream(lane, stream), y + frame.bar + 3, frame)


def _blocks(spans: Iterable[Span], y: int, frame: _Frame, palette: Palette) -> Iterator[str]:
    """One path for all blocks of a look; a fused pair is one above the other.

    Those that are too narrow to be seen are widened, and lie over their neighbors.
    """
    drawn: dict[tuple[bool, int], list[str]] = defaultdict(list)
    scale, left, bar = frame.width / frame.end_ns, frame.left, frame.bar
    for span in spans:
        if span.end_ns == span.start_ns:
            continue
        x, width = left + span.start_ns * scale, (span.end_ns - span.start_ns) * scale
        is_thin = width < _NARROWEST
        if is_thin:
            width = _NARROWEST
        elif width > 4:
            width -= 1
        parts = span.action.parts or (span.action,)
        height = bar // len(parts)
        for i, part in enumerate(parts):
            box = f"M{x:.1f} {y + i * height}h{width:.1f}v{height}h-{width:.1f}z"
            drawn[is_thin, palette.number(part)].append(box)
    for (_, number), boxes in sorted(drawn.items()):
        yield f'<path fill="{_paint(number, palette.looks[number])}" d="{"".join(boxes)}"/>'


def _names(spans: Iterable[Span], y: int, frame: _Frame, palette: Palette, labels: Labels) -> Iterator[str]:
    """What is written into each block, in its parts; a name on a hatch stands on the plain fill."""
    for span in spans:
        named = _names_of(span, frame, labels)
        for index, (part, name, size) in enumerate(named):
            look = palette.looks[palette.number(part)]
            height = frame.bar // len(named)
            x, middle = (frame.x(span.start_ns) + frame.x(span.end_ns) - 1) / 2, y + (index + 0.5) * height
            if look.hatch is not Hatch.NONE:
                width, tall = text_width(name, size=size) + 3, min(size + 3, height)
                box = f'x="{x - width / 2:.1f}" y="{middle - tall / 2:g}" width="{width:.1f}" height="{tall}" rx="2"'
                yield f'<rect {box} fill="{look.fill}"/>'
            at = f'x="{x:.1f}" y="{middle + 0.36 * size:.1f}" text-anchor="middle"'
            small = "" if size == FONT_SIZE else f' font-size="{size}"'
            yield f'<text {at}{small} fill="{look.ink}">{escape(name)}</text>'


def _wires(spans: Iterable[Span], y: int, frame: _Frame) -> Iterator[str]:
    """Transfers as thin lines under the blocks; those that take no time are left out."""
    for _, kinds, color in _TRANSFERS:
        lines = [
            f"M{frame.x(s.start_ns):.1f} {y}H{max(frame.x(s.end_ns), frame.x(s.start_ns) + _NARROWEST):.1f}"
            for s in spans
            if s.duration_ns and s.action.kind in kinds
        ]
        if lines:
            stroke = f'stroke="{color}" stroke-width="{frame.wire - 1}"'
            yield f'<path d="{"".join(lines)}" {stroke} transform="translate(0 1.5)"/>'


def _critical(layer: Layer, frame: _Frame) -> Iterator[str]:
    """A line under the blocks of the blocks of the critical path."""
    lines = []
    for span in critical_path(layer.timeline):
        if span.stream is Stream.COMPUTE and span.duration_ns:
            y = frame.y(span.lane, 0) + frame.bar + 1
            lines.append(f"M{frame.x(span.start_ns):.1f} {y}H{frame.x(span.end_ns):.1f}")
    yield f'<path d="{"".join(lines)}" stroke="{CRITICAL}" stroke-width="2" fill="none"/>'


def _legend(layers: Sequence[Layer], palette: Palette, top: int) -> tuple[list[str], int]:
    """A sample of what is drawn with its name, in rows; and their height."""
    legend = legend_of(layers, palette)
    box = 'y="-10" width="24" height="13" rx="1"'
    looks = [(number, palette.looks[number]) for number in legend.looks]
    named = {look.name: f'<rect {box} fill="{_paint(number, look)}"/>' for number, look in looks}
    named["idle"] = f'<rect {box} fill="{LANE}" stroke="{GRID}"/>'
    for name, kinds, color in _TRANSFERS:
        if not legend.kinds.isdisjoint(kinds):
            named[f"transfer {name}"] = f'<path d="M0 -3h24" stroke="{color}" stroke-width="3"/>'
    named["critical path"] = f'<path d="M0 -3h24" stroke="{CRITICAL}" stroke-width="2"/>'
    named[legend.key] = ""
    parts, x, y = [], 24, top
    for name, sample in named.items():
        indent = 32 if sample else 0
        width = 24 + indent + round(text_width(name))
        if x + width > _WIDTH:
            x, y = 24, y + 24
        parts.append(f'<g transform="translate({x} {y})">{sample}<text x="{indent}" y="1">{escape(name)}</text></g>')
        x += width
    return parts, y - top + 24
