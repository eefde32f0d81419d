"""The critical path of a timeline: the chain of spans that set its makespan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from hetsched.schedule.action import Action
from hetsched.sim.messages import message_pairs
from hetsched.sim.timeline import Span, Stream, Timeline


def critical_path(timeline: Timeline) -> tuple[Span, ...]:
    """Spans from one that nothing delayed to the last of the timeline, each delayed by the one before.

    An action is delayed by the one before it on its lane and by the messages received since; in a gang, on any lane
    of it. A message, shown by its span at the receiver, is delayed by the same of its SEND, by the message before
    it on either engine, and, if none of these ended as it started, by what the receiver did before its RECV (with
    rendezvous or too few slots). Of several the one that ended last counts, so that measured
    timelines, with their small gaps, have a path too.
    """
    causes = _Causes(timeline)
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
    """What each span of a timeline waited for.

    Spans are known here by identity: to hash one costs as much as all the rest.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._computed: list[list[Span | None]] = [[None] * len(actions) for actions in timeline.program.lanes]
        self._received: dict[tuple[int, int], list[Span]] = defaultdict(list)
        self._position: dict[int, int] = {}
        self._began: dict[int, list[Span]] = defaultdict(list)
        self._find_places(timeline)
        self._sent: dict[int, Span] = {}
        self._before: dict[int, list[Span]] = defaultdict(list)
        self._find_messages(timeline)

    def of(self, span: Span) -> list[Span]:
        if span.stream is Stream.COMPUTE:
            gang = (other for other in self._began[span.start_ns] if _are_of_a_gang(other.action, span.action))
            return [cause for member in gang for cause in self._ready(member)]
        causes = [*self._before[id(span)]]
        if id(span) in self._sent:
            causes += self._ready(self._sent[id(span)])
        if all(cause.end_ns < span.start_ns for cause in causes):
            causes += self._ready(span)
        return causes

    def _find_places(self, timeline: Timeline) -> None:
        """The n-th span of a compute action on a lane is of its n-th place in the list."""
        for lane, actions in enumerate(timeline.program.lanes):
            # The last first, so that the next is at the end of each list.
            places: dict[Action, list[int]] = defaultdict(list)
            for position in range(len(actions) - 1, -1, -1):
                places[actions[position]].append(position)
            computed = self._computed[lane]
            for span in timeline.stream(lane, Stream.COMPUTE):
                position = self._position[id(span)] = places[span.action].pop()
                computed[position] = span
                self._began[span.start_ns].append(span)
            for span in timeline.stream(lane, Stream.RECEIVE):
                position = self._position[id(span)] = places[span.action][-1]
                self._received[lane, position].append(span)
            for span in timeline.stream(lane, Stream.SEND):
                self._position[id(span)] = places[span.action][-1]

    def _find_messages(self, timeline: Timeline) -> None:
        arrival = {}
        for sent, received in message_pairs(timeline):
            arrival[id(sent)] = received
            self._sent[id(received)] = sent
        for lane in range(len(timeline.program.lanes)):
            sends = timeline.stream(lane, Stream.SEND)
            arrived = [arrival[id(span)] for span in sends if id(span) in arrival]
            for engine in (arrived, timeline.stream(lane, Stream.RECEIVE)):
                in_turn = [span for span in engine if span.end_ns > span.start_ns]
                for before, after in pairwise(in_turn):
                    self._before[id(after)].append(before)

    def _ready(self, span: Span) -> Iterator[Span]:
        """What a lane did last before it reached a span's action: one action, and the messages received since."""
        lane = span.lane
        for position in range(self._position[id(span)] - 1, -1, -1):
            yield from self._received.get((lane, position), ())
            computed = self._computed[lane][position]
            if computed is not None:
                yield computed
                return


def _are_of_a_gang(one: Action, other: Action) -> bool:
    """Whether two actions that began together are what several lanes do as one."""
    return (one.module, one.stage, one.kind, one.first) == (other.module, other.stage, other.kind, other.first)
