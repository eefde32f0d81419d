"""Which RECV takes what which SEND posts."""

from __future__ import annotations

from collections.abc import Iterator

from hetsched.schedule.action import Action, Kind
from hetsched.sim.timeline import Span, Stream, Timeline

_MessageKey = tuple[str, int, bool, int | None, int | None, int | None]


_TO_RECEIVER = {Kind.SEND_F: 1, Kind.SEND_B: -1, Kind.RECV_F: 0, Kind.RECV_B: 0}
"""From the stage of an action on a pipeline's edge to the one that receives."""


def message_pairs(timeline: Timeline) -> Iterator[tuple[Span, Span]]:
    """The span at the sender and the span at the receiver of each message, by receiver and time."""
    lanes = range(len(timeline.program.lanes))
    sent = {
        _key(span.action, source=lane, destination=span.peer): span
        for lane in lanes
        for span in timeline.stream(lane, Stream.SEND)
    }
    for lane in lanes:
        for span in timeline.stream(lane, Stream.RECEIVE):
            at_sender = sent.get(_key(span.action, source=span.peer, destination=lane))
            if at_sender is not None:
                yield at_sender, span


def _key(action: Action, *, source: int | None, destination: int | None) -> _MessageKey:
    """Equal for the SEND and the RECV of a message: the stage is that of the receiver, and an edge has but one."""
    module, kind = action.module, action.kind
    stage = 0 if "->" in module else action.stage + _TO_RECEIVER[kind]
    return module, stage, kind is Kind.SEND_F or kind is Kind.RECV_F, source, action.first, destination
