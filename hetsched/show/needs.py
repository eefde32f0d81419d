"""Which action made what another one needs, and which message brought it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hetsched.schedule.action import Action, Kind
from hetsched.sim.timeline import Span, Stream, Timeline

_Key = tuple[int, str, int, bool, int | None]
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
    ends = _ends_of_edges(timeline)
    brought = set()
    for sent, received in messages:
        action = sent.action
        is_forward, m = action.kind is Kind.SEND_F, action.first
        if action.module in ends:
            source, target = ends[action.module][:: 1 if is_forward else -1]
        else:
            source, target = (action.module, action.stage), (action.module, received.action.stage)
        maker = at.get((sent.lane, *source, is_forward, m))
        user = at.get((received.lane, *target, is_forward, m))
        if maker is not None and user is not None:
            brought.add((maker, user))
            yield Need(maker, user, received)
    for (lane, module, stage, is_forward, m), user in at.items():
        maker = at.get((lane, module, stage - 1 if is_forward else stage + 1, is_forward, m))
        if maker is not None and (maker, user) not in brought:
            yield Need(maker, user, None)


def _ends_of_edges(timeline: Timeline) -> dict[str, tuple[tuple[str, int], tuple[str, int]]]:
    """For each boundary the (module, stage) on either side of it."""
    topology = timeline.program.topology
    last = {module.name: module.num_stages - 1 for module in topology.modules}
    return {e.name: ((e.producer, last[e.producer]), (e.consumer, e.stage)) for e in topology.edges}


def _places(spans: Sequence[Span]) -> Iterator[tuple[_Key, int]]:
    for number, span in enumerate(spans):
        for part in span.action.flat():
            if _gives_result(part):
                for m in part.microbatches:
                    yield (span.lane, part.module, part.stage, part.kind is Kind.F, m), number


def _gives_result(action: Action) -> bool:
    """Whether another stage waits for it; nobody waits for a weight gradient."""
    return action.kind in (Kind.F, Kind.B, Kind.I)
