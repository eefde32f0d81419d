"""Which action made what another one needs, and which message brought it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hetsched.schedule.action import Action, Kind
from hetsched.sim.timeline import Span, Stream, Timeline

_Key = tuple[int, str, int, bool, int]
"""Lane, module, stage, whether it is a forward, microbatch."""


class Need(NamedTuple):
    """One result that an action waits for.

    Args:
        maker, user: numbers of spans in ``compute_spans``.
        message: its span at the receiver; None where the result was handed over on the lane.
    """

    maker: int
    user: int
    message: Span | None


def compute_spans(timeline: Timeline) -> list[Span]:
    """The spans of all compute engines, lane by lane."""
    lanes = range(len(timeline.program.lanes))
    return [span for lane in lanes for span in timeline.stream(lane, Stream.COMPUTE)]


def needs(timeline: Timeline, spans: Sequence[Span], messages: Iterable[tuple[Span, Span]]) -> Iterator[Need]:
    """The needs of all actions: first those that messages bring, then those handed over.

    Args:
        timeline: simulated or measured.
        spans: its ``compute_spans``.
        messages: its ``message_pairs``.
    """
    at = dict(_places(spans))
    edges = {edge.name: edge for edge in timeline.program.topology.edges}
    last = {module.name: module.num_stages - 1 for module in timeline.program.topology.modules}

    def end(span: Span, *, is_producer: bool) -> int | None:
        """The compute span at one end of a message."""
        action, module, stage = span.action, span.action.module, span.action.stage
        if module in edges:
            edge = edges[module]
            module, stage = (edge.producer, last[edge.producer]) if is_producer else (edge.consumer, edge.stage)
        is_forward = action.kind in (Kind.SEND_F, Kind.RECV_F)
        return at.get((span.lane, module, stage, is_forward, action.microbatches[0]))

    brought = set()
    for sent, received in messages:
        is_forward = sent.action.kind is Kind.SEND_F
        maker, user = end(sent, is_producer=is_forward), end(received, is_producer=not is_forward)
        if maker is not None and user is not None:
            brought.add((maker, user))
            yield Need(maker, user, received)
    for (lane, module, stage, is_forward, m), user in at.items():
        maker = at.get((lane, module, stage - 1 if is_forward else stage + 1, is_forward, m))
        if maker is not None and (maker, user) not in brought:
            yield Need(maker, user, None)


def _places(spans: Sequence[Span]) -> Iterator[tuple[_Key, int]]:
    for number, span in enumerate(spans):
        for part in span.action.flat():
            if _gives_result(part):
                for m in part.microbatches:
                    yield (span.lane, part.module, part.stage, part.kind is Kind.F, m), number


def _gives_result(action: Action) -> bool:
    """Whether another stage waits for it; nobody waits for a weight gradient."""
    return action.kind in (Kind.F, Kind.B, Kind.I)
