"""The critical path of a timeline: the chain of spans that set its makespan."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import pairwise

from hetsched.schedule.action import Action, Kind
from hetsched.sim.messages import message_pairs
from hetsched.sim.timeline import Span, Stream, Timeline

_Place = tuple[int, int]
"""A lane and a position in its list."""


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
        self._at: dict[_Place, list[Span]] = defaultdict(list)
        self._place: dict[int, _Place] = {}
        self._gang: dict[tuple[str, int, Kind, int | None, int], list[Span]] = defaultdict(list)
        self._find_places(timeline)
        self._send_place: dict[int, _Place] = {}
        self._before: dict[int, list[Span]] = defaultdict(list)
        self._find_messages(timeline)

    def of(self, span: Span) -> list[Span]:
        if span.stream is Stream.COMPUTE:
            gang = self._gang[_gang_key(span)]
            return [cause for member in gang for cause in self._ready(self._place[id(member)])]
        causes = [*self._before[id(span)]]
        if id(span) in self._send_place:
            causes += self._ready(self._send_place[id(span)])
        if all(cause.end_ns < span.start_ns for cause in causes):
            causes += self._ready(self._place[id(span)])
        return causes

    def _find_places(self, timeline: Timeline) -> None:
        """The n-th span of a compute action on a lane is of its n-th place in the list."""
        for lane, actions in enumerate(timeline.program.lanes):
            places: dict[Action, deque[int]] = defaultdict(deque)
            for position, action in enumerate(actions):
                places[action].append(position)
            for span in timeline.stream(lane, Stream.COMPUTE):
                self._add(span, (lane, places[span.action].popleft()))
                self._gang[_gang_key(span)].append(span)
            for span in timeline.stream(lane, Stream.RECEIVE):
                self._add(span, (lane, places[span.action][0]))
            for span in timeline.stream(lane, Stream.SEND):
                self._place[id(span)] = (lane, places[span.action][0])

    def _add(self, span: Span, place: _Place) -> None:
        self._place[id(span)] = place
        self._at[place].append(span)

    def _find_messages(self, timeline: Timeline) -> None:
        arrival = {}
        for sent, received in message_pairs(timeline):
            arrival[id(sent)] = received
            self._send_place[id(received)] = self._place[id(sent)]
        for lane in range(len(timeline.program.lanes)):
            sends = timeline.stream(lane, Stream.SEND)
            arrived = [arrival[id(span)] for span in sends if id(span) in arrival]
            for engine in (arrived, timeline.stream(lane, Stream.RECEIVE)):
                in_turn = [span for span in engine if span.end_ns > span.start_ns]
                for before, after in pairwise(in_turn):
                    self._before[id(after)].append(before)

    def _ready(self, place: _Place) -> Iterator[Span]:
        """What a lane did last before it reached a place: one action, and the messages received since."""
        lane, position = place
        while position > 0:
            position -= 1
            found = self._at.get((lane, position), [])
            yield from found
            if found and found[0].stream is Stream.COMPUTE:
                return


def _gang_key(span: Span) -> tuple[str, int, Kind, int | None, int]:
    """Equal for the spans of a gang's action."""
    action = span.action
    return action.module, action.stage, action.kind, action.first, span.start_ns
