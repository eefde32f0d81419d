"""The critical path of a timeline: the chain of spans that set its makespan."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter, itemgetter

from hetsched.schedule.action import Action
from hetsched.sim.messages import message_pairs
from hetsched.sim.places import first_places, places_of
from hetsched.sim.timeline import Span, Stream, Timeline


def critical_path(timeline: Timeline, messages: Iterable[tuple[Span, Span]] | None = None) -> tuple[Span, ...]:
    """Spans from one that nothing delayed to the last of the timeline, each delayed by the one before.

    An action is delayed by the one before it on its lane and by the messages received since; in a gang, on any lane
    of it. A message, shown by its span at the receiver, is delayed by the same of its SEND, by the message before
    it on either engine, and, if none of these ended as it started, by what the receiver did before its RECV (with
    rendezvous or too few slots). Of several the one that ended last counts, so that measured
    timelines, with their small gaps, have a path too.

    Args:
        timeline: simulated or measured.
        messages: its ``message_pairs``, where they are known.
    """
    causes = _Causes(timeline, message_pairs(timeline) if messages is None else messages)
    ends = [span for span in timeline.spans if span.stream is not Stream.SEND]
    if not ends:
        return ()
    path = [max(ends, key=_by_end)]
    while path[-1].start_ns > 0:
        # What began later delayed nothing; in a measured timeline clocks may say so.
        delayed_by = [span for span in causes.of(path[-1]) if span.start_ns <= path[-1].start_ns]
        if not delayed_by:
            break
        path.append(max(delayed_by, key=_by_end))
    return tuple(reversed(path))


def _by_end(span: Span) -> tuple[int, int, int]:
    return span.end_ns, span.duration_ns, -span.lane


class _Causes:
    """What each span of a timeline waited for; of a lane what is asked for is looked up when it first is.

    Spans are known here by identity: to hash one costs as much as all the rest.
    """

    def __init__(self, timeline: Timeline, messages: Iterable[tuple[Span, Span]]) -> None:
        pairs = list(messages)
        self._timeline = timeline
        self._received = dict(zip((id(sent) for sent, _ in pairs), map(itemgetter(1), pairs), strict=True))
        self._sent = dict(zip((id(received) for _, received in pairs), map(itemgetter(0), pairs), strict=True))
        self._lanes: dict[int, _Lane] = {}
        self._modules = {module.name: module for module in timeline.program.topology.modules}

    def of(self, span: Span) -> list[Span]:
        if span.stream is Stream.COMPUTE:
            return [cause for member in self._gang(span) for cause in self._lane(member).before(member)]
        sent = self._sent.get(id(span))
        causes = self._messages_before(span, sent)
        if sent is not None:
            causes += self._lane(sent).before(sent)
        if all(cause.end_ns < span.start_ns for cause in causes):
            causes += self._lane(span).before(span)
        return causes

    def _lane(self, span: Span) -> _Lane:
        if span.lane not in self._lanes:
            self._lanes[span.lane] = _Lane(self._timeline, span.lane)
        return self._lanes[span.lane]

    def _gang(self, span: Span) -> Iterator[Span]:
        """The spans of all lanes that do as one what this one does."""
        for lane in self._modules[span.action.module].lanes(span.action.stage):
            computed = self._timeline.stream(lane, Stream.COMPUTE)
            for number in range(bisect_left(computed, span.start_ns, key=_by_start), len(computed)):
                if computed[number].start_ns > span.start_ns:
                    break
                if _are_of_a_gang(computed[number].action, span.action):
                    yield computed[number]

    def _messages_before(self, span: Span, sent: Span | None) -> list[Span]:
        """The last message before it on the receiver's engine, and on the sender's, each at its receiver."""
        found = _last_in_turn(span, _earlier(self._timeline.stream(span.lane, Stream.RECEIVE), span))
        if sent is not None:
            earlier = _earlier(self._timeline.stream(sent.lane, Stream.SEND), sent)
            found += _last_in_turn(span, (self._received[id(b)] for b in earlier if id(b) in self._received))
        return found


class _Lane:
    """What a lane did and received, by place in its list."""

    def __init__(self, timeline: Timeline, lane: int) -> None:
        computed, received = (timeline.stream(lane, stream) for stream in (Stream.COMPUTE, Stream.RECEIVE))
        actions = timeline.program.lanes[lane]
        self._first = first_places(actions)
        places = places_of(actions, computed)
        self._computed = dict(zip(map(id, computed), places, strict=True))
        places += [self._first[span.action] for span in received]
        order = sorted(range(len(places)), key=places.__getitem__)
        self._places = [places[number] for number in order]
        spans = (*computed, *received)
        self._spans = [spans[number] for number in order]

    def before(self, span: Span) -> Iterator[Span]:
        """What it did last before it reached a span's action: one action, and the messages received since."""
        place = self._computed[id(span)] if span.stream is Stream.COMPUTE else self._first[span.action]
        for number in range(bisect_left(self._places, place) - 1, -1, -1):
            yield self._spans[number]
            if self._spans[number].stream is Stream.COMPUTE:
                return


_by_start = attrgetter("start_ns")


def _earlier(engine: Sequence[Span], span: Span) -> Iterator[Span]:
    """The spans of an engine before one of it, the last first."""
    number = bisect_left(engine, span.start_ns, key=_by_start)
    while engine[number] is not span:
        number += 1
    while number:
        number -= 1
        yield engine[number]


def _last_in_turn(span: Span, earlier: Iterable[Span]) -> list[Span]:
    """The first of the earlier messages that held its engine, where this one does; those that take no time never do."""
    if not span.duration_ns:
        return []
    return list(islice((before for before in earlier if before.duration_ns), 1))


def _are_of_a_gang(one: Action, other: Action) -> bool:
    """Whether two actions that began together are what several lanes do as one."""
    return (one.module, one.stage, one.kind, one.first) == (other.module, other.stage, other.kind, other.first)
