"""Timelines in the trace event format, which ui.perfetto.dev and chrome://tracing open.

A process a lane (and layer), a track an engine. Messages that overlap on a track, as measured ones may, go to
further tracks of the same engine. Arrows run from each SEND to its RECV, a counter shows what a lane holds.

Source: Trace Event Format (Google, 2016): complete (X), flow (s, f), counter (C) and metadata (M) events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from hetsched.schedule.action import Action
from hetsched.show.compare import Comparison
from hetsched.show.layer import Layer, scaling
from hetsched.show.memory import memory_of
from hetsched.sim.messages import message_pairs
from hetsched.sim.timeline import Span, Stream

_TRACKS = {Stream.COMPUTE: 0, Stream.SEND: 100, Stream.RECEIVE: 200}
"""Number of the first track of each engine within a process."""
_NS_PER_US = 1000

Event = dict[str, Any]


def to_perfetto(layers: Sequence[Layer], *, comparison: Comparison | None = None) -> str:
    """A JSON object of trace events; its times are microseconds.

    Args:
        layers: a process for each lane of each.
        comparison: of the first two layers.
    """
    events: list[Event] = []
    first_process = 1
    for index, layer in enumerate(layers):
        prefix = f"{layer.name} " if len(layers) > 1 else ""
        suffix = scaling(comparison) if index == 0 else ""
        events += _layer(layer, first_process, prefix, suffix)
        first_process += len(layer.timeline.program.lanes)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _layer(layer: Layer, first_process: int, prefix: str, suffix: str) -> Iterator[Event]:
    timeline, memory = layer.timeline, memory_of(layer.timeline)
    track_of: dict[int, int] = {}
    for lane, curve in enumerate(memory.curves):
        process = first_process + lane
        yield _metadata("process_name", process, name=f"{prefix}lane {lane}{suffix}")
        yield _metadata("process_sort_index", process, sort_index=process)
        for stream, first in _TRACKS.items():
            for number, spans in enumerate(_without_overlap(timeline.stream(lane, stream))):
                track = first + number
                name = str(stream) if number == 0 else f"{stream} {number + 1}"
                yield _metadata("thread_name", process, track, name=name)
                yield _metadata("thread_sort_index", process, track, sort_index=track)
                for span in spans:
                    track_of[id(span)] = track
                    yield _slice(span, process, track)
        for time, held in curve:
            yield {
                "ph": "C",
                "name": f"memory ({memory.unit})",
                "pid": process,
                "ts": _us(time),
                "args": {"held": held},
            }
    for number, (sent, received) in enumerate(message_pairs(timeline)):
        arrow = {"name": "message", "cat": "message", "id": f"{first_process}.{number}"}
        for phase, span, more in (("s", sent, {}), ("f", received, {"bp": "e"})):
            process = first_process + span.lane
            # A clock that is behind must not make an arrow end before it starts.
            time = max(span.start_ns, sent.start_ns)
            yield {"ph": phase, "pid": process, "tid": track_of[id(span)], "ts": _us(time)} | arrow | more


def _without_overlap(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans, by start, on as few tracks as they need."""
    tracks: list[list[Span]] = []
    for span in spans:
        free = next((track for track in tracks if track[-1].end_ns <= span.start_ns), None)
        if free is None:
            tracks.append([span])
        else:
            free.append(span)
    return tracks


def _metadata(what: str, process: int, track: int = 0, **args: Any) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": track, "args": args}


def _slice(span: Span, process: int, track: int) -> Event:
    action = span.action
    args = _args(action)
    if action.parts:
        args = dict(zip(("forward", "backward"), map(_args, action.parts), strict=True))
    if span.peer is not None:
        args["peer_lane"] = span.peer
    start, end = _us(span.start_ns), _us(span.end_ns)
    # Rounded at both ends, so that neighbors touch and never overlap.
    event = {"ph": "X", "name": str(action), "cat": str(action.kind), "ts": start, "dur": round(end - start, 3)}
    return event | {"pid": process, "tid": track, "args": args}


def _args(action: Action) -> dict[str, Any]:
    """What an action works on."""
    args: dict[str, Any] = {"module": action.module, "stage": action.stage}
    if action.first is not None:
        args |= {"first_microbatch": action.first, "last_microbatch": action.last}
    return args


def _us(time_ns: int) -> float:
    return time_ns / _NS_PER_US
