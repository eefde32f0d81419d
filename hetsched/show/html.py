"""Timelines as one HTML file that needs nothing else: data, style and script are in it, and it asks no network.

page.html is the frame, page.css its style and the scripts draw the data, which are flat lists of integers, so that
64 lanes of 256 microbatches stay a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from hetsched.schedule.action import Action, Kind
from hetsched.show.compare import Comparison
from hetsched.show.label import Labels
from hetsched.show.layer import Layer, scaling
from hetsched.show.legend import legend_of
from hetsched.show.memory import memory_of
from hetsched.show.needs import compute_spans, needs
from hetsched.show.palette import (
    CAUSES,
    CRITICAL,
    GRID,
    LANE,
    LINES,
    MUTED,
    SENT_BACKWARD,
    SENT_FORWARD,
    TEXT,
    TILE,
    Palette,
)
from hetsched.show.unit import MILLISECOND, Unit
from hetsched.sim.bubble import bubbles
from hetsched.sim.critical import critical_path
from hetsched.sim.messages import message_pairs
from hetsched.sim.timeline import Span, Stream, Timeline

_SCRIPTS = ("page_data.js", "page_paint.js", "page_controls.js", "page_text.js")
_FUSED = 64
"""Looks of a fused pair are one number: first + _FUSED * (1 + second)."""


def to_html(
    layers: Sequence[Layer], *, title: str, unit: Unit = MILLISECOND, comparison: Comparison | None = None
) -> str:
    """An HTML document.

    Args:
        layers: timelines on one time axis.
        title: what is shown.
        unit: in which times are written.
        comparison: of the first two layers.
    """
    palette = Palette(layer.timeline.program for layer in layers)
    legend = legend_of(layers, palette)
    data = {
        "unit": {"ns": unit.ns, "name": unit.name},
        "looks": [asdict(look) for look in palette.looks],
        "legend": {"looks": legend.looks, "key": legend.key},
        "hatches": LINES,
        "tile": TILE,
        "causes": CAUSES,
        "colors": {
            "lane": LANE,
            "grid": GRID,
            "text": TEXT,
            "muted": MUTED,
            "forward": SENT_FORWARD,
            "backward": SENT_BACKWARD,
            "critical": CRITICAL,
        },
        "layers": [_layer(layer, palette) for layer in layers],
        "comparison": None if comparison is None else _comparison(comparison),
    }
    page = _read("page.html")
    # A "<" in a string could end the script element.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    for mark, value in (
        ("TITLE", escape(title)),
        ("STYLE", _read("page.css")),
        ("SCRIPT", "\n".join(map(_read, _SCRIPTS))),
        ("DATA", text),
    ):
        page = page.replace(f"{{{{{mark}}}}}", value)
    return page


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _layer(layer: Layer, palette: Palette) -> dict[str, Any]:
    timeline, spans = layer.timeline, compute_spans(layer.timeline)
    lanes = range(len(timeline.program.lanes))
    messages = list(message_pairs(timeline))
    received = [span for _, span in messages]
    number_of_message = {id(span): number for number, span in enumerate(received)}
    memory = memory_of(timeline)
    labels = Labels(timeline.program)
    return {
        "name": layer.name,
        "makespan": timeline.makespan_ns,
        "bound": timeline.lower_bound_ns,
        "prefixes": labels.prefixes,
        "lanes": [len(timeline.stream(lane, Stream.COMPUTE)) for lane in lanes],
        "names": " ".join(labels.of(span.action)[0] if span.action.parts else str(span.action) for span in spans),
        "labels": " ".join(labels.of(span.action)[0] for span in spans),
        "looks": [_look(palette, span.action) for span in spans],
        "times": _times(spans),
        "messages": [x for span in received for x in _message(span)],
        "needs": [
            x
            for need in needs(timeline, spans, messages)
            for x in (need.maker, need.user, -1 if need.message is None else number_of_message[id(need.message)])
        ],
        "critical": _critical(timeline, spans, messages),
        "bubbles": [list(bubble.by_cause().values()) for bubble in bubbles(timeline)],
        "memory": {"unit": memory.unit, "curves": [[x for point in curve for x in point] for curve in memory.curves]},
    }


def _look(palette: Palette, action: Action) -> int:
    if not action.parts:
        return palette.number(action)
    first, second = map(palette.number, action.parts)
    return first + _FUSED * (1 + second)


def _times(spans: Sequence[Span]) -> list[int]:
    """For each span the idle time since the one before on its lane, and its duration."""
    result: list[int] = []
    lane, end = -1, 0
    for span in spans:
        if span.lane != lane:
            lane, end = span.lane, 0
        result += (span.start_ns - end, span.end_ns - span.start_ns)
        end = span.end_ns
    return result


def _message(span: Span) -> tuple[int, int, int, int, int]:
    """Sender, receiver, start, duration, and whether it goes backward."""
    assert span.peer is not None
    return span.peer, span.lane, span.start_ns, span.duration_ns, int(span.action.kind is Kind.RECV_B)


def _critical(timeline: Timeline, spans: Sequence[Span], messages: Sequence[tuple[Span, Span]]) -> list[int]:
    """The critical path: numbers of compute spans, and -1 - number of messages."""
    path = critical_path(timeline, messages)
    wanted = {id(span) for span in path}
    number_of = {id(span): n for n, span in enumerate(spans) if id(span) in wanted}
    number_of |= {id(span): -1 - n for n, (_, span) in enumerate(messages) if id(span) in wanted}
    return [number_of[id(span)] for span in path if id(span) in number_of]


def _comparison(comparison: Comparison) -> dict[str, Any]:
    divergence = comparison.divergence
    return {
        "scaling": scaling(comparison),
        "errors": [
            [e.name, e.count, e.predicted_ns, e.measured_ns, e.share, e.mean_error_ns] for e in comparison.errors
        ],
        "divergence": None
        if divergence is None
        else {"lane": divergence.lane, "at": divergence.at_ns, "text": divergence.text},
    }
