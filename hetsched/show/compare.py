"""A predicted and a measured timeline of one step, matched action by action."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from hetsched.errors import ScheduleError
from hetsched.layout.placement import ModuleOnLanes, Topology
from hetsched.schedule.action import Action, Kind
from hetsched.show.unit import MILLISECOND, Unit
from hetsched.sim.timeline import Span, Stream, Timeline

TOLERANCE = 0.05
"""An action diverges if it starts or ends off by more than this share of the predicted step."""

_Key = tuple[int, Stream, Action, int | None, int]


@dataclass(frozen=True, slots=True)
class Match:
    """The spans of one action in both timelines; None where it is missing."""

    predicted: Span | None
    measured: Span | None


@dataclass(frozen=True, slots=True)
class KindError:
    """The durations of all matched actions of one kind of one module, without what they waited for inside.

    Args:
        name: e.g. ``llm F``; messages by the kind of their SEND.
        count: actions.
        predicted_ns, measured_ns: mean duration.
        mean_error_ns: mean of the absolute difference, action by action.
    """

    name: str
    count: int
    predicted_ns: float
    measured_ns: float
    mean_error_ns: float

    @property
    def is_message(self) -> bool:
        """Whether these are messages, whose times are those under way, waiting included."""
        return self.name.endswith((Kind.SEND_F, Kind.SEND_B))

    @property
    def share(self) -> str:
        """The error for people; empty for messages, and where nothing was predicted."""
        # What is rounded to nothing has no sign.
        return "" if self.is_message or math.isinf(self.error) else f"{round(self.error, 3) + 0.0:+.1%}"

    @property
    def error(self) -> float:
        """Measured over predicted, less 1; infinite where nothing was predicted."""
        if self.predicted_ns:
            return self.measured_ns / self.predicted_ns - 1
        return math.inf if self.measured_ns else 0.0


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the two first part.

    Args:
        lane: of the action.
        action: the predicted one, or the measured one where none was predicted.
        at_ns: when it was predicted to start.
        text: what is different, for a reader.
    """

    lane: int
    action: Action
    at_ns: int
    text: str


@dataclass(frozen=True)
class Comparison:
    """Both timelines, with what was found.

    Args:
        predicted: scaled, see ``scale``.
        measured: as it is.
        scale: what the predicted times were multiplied by.
        matches: by lane, stream and predicted start; those that were only measured last.
        errors: by name.
        divergence: None if all actions lie within the tolerance and in the same order.
    """

    predicted: Timeline
    measured: Timeline
    scale: float
    matches: tuple[Match, ...]
    errors: tuple[KindError, ...]
    divergence: Divergence | None


def compare(
    predicted: Timeline, measured: Timeline, *, unit: Unit = MILLISECOND, is_scaled: bool = False
) -> Comparison:
    """Match two timelines and say how they differ.

    Args:
        predicted: usually simulated.
        measured: of a program with as many lanes.
        unit: for texts.
        is_scaled: multiply the predicted times so that the compute of both adds up to the same, for predictions
            whose unit of time means nothing.

    Raises:
        ScheduleError: they have different modules or lanes.
    """
    difference = _difference(predicted.program.topology, measured.program.topology)
    if difference:
        raise ScheduleError(f"the two timelines are of different plans: {difference}; give the plan that was trained")
    scale = 1.0
    if is_scaled and _work(predicted) and _work(measured):
        scale = _work(measured) / _work(predicted)
        predicted = scaled(predicted, scale)
    matches = tuple(_match(predicted, measured))
    return Comparison(
        predicted, measured, scale, matches, tuple(_errors(matches)), _divergence(predicted, measured, matches, unit)
    )


def scaled(timeline: Timeline, factor: float) -> Timeline:
    """The timeline with all times multiplied by ``factor``."""
    spans = tuple(_scaled_span(span, factor) for span in timeline.spans)
    memory = tuple(tuple((round(time * factor), held) for time, held in curve) for curve in timeline.memory)
    bound = None if timeline.lower_bound_ns is None else round(timeline.lower_bound_ns * factor)
    return replace(timeline, spans=spans, memory=memory, lower_bound_ns=bound)


def _scaled_span(span: Span, factor: float) -> Span:
    start, end = round(span.start_ns * factor), round(span.end_ns * factor)
    return span._replace(start_ns=start, end_ns=end, waited_ns=min(round(span.waited_ns * factor), end - start))


def _difference(predicted: Topology, measured: Topology) -> str | None:
    """The first module, or else whatever part, in which two topologies differ."""
    if predicted == measured:
        return None
    names = [[module.name for module in topology.modules] for topology in (predicted, measured)]
    if names[0] != names[1]:
        return f"the modules predicted are {', '.join(names[0])}, those measured {', '.join(names[1])}"
    for before, after in zip(predicted.modules, measured.modules, strict=True):
        if before.stages != after.stages:
            return f"{before.name} was predicted on {_lanes(before)}, and measured on {_lanes(after)}"
        if before != after:
            return f"{before.name} has a backward or takes items in one of them only"
    if predicted.edges != measured.edges:
        names = [[f"{edge.name} at stage {edge.stage}" for edge in of.edges] for of in (predicted, measured)]
        return f"the boundaries predicted are {', '.join(names[0])}, those measured {', '.join(names[1])}"
    return f"{predicted.num_lanes} lanes were predicted, and {measured.num_lanes} measured"


def _lanes(module: ModuleOnLanes) -> str:
    """Where a module runs, stage by stage; lanes that run an action at once are joined by a +."""
    stages = (", ".join("+".join(map(str, gang)) for gang in gangs) for gangs in module.stages)
    return f"lanes {' | '.join(stages)}"


def _work(timeline: Timeline) -> int:
    return sum(span.work_ns for span in timeline.spans if span.action.kind.is_compute)


def _match(predicted: Timeline, measured: Timeline) -> Iterator[Match]:
    """The n-th span of an action on a stream with the n-th."""
    of_measured = _by_key(measured)
    for key, span in _by_key(predicted).items():
        yield Match(span, of_measured.pop(key, None))
    for span in of_measured.values():
        yield Match(None, span)


def _by_key(timeline: Timeline) -> dict[_Key, Span]:
    counts: dict[tuple[int, Stream, Action, int | None], int] = defaultdict(int)
    found: dict[_Key, Span] = {}
    for span in timeline.spans:
        key = (span.lane, span.stream, span.action, span.peer)
        found[*key, counts[key]] = span
        counts[key] += 1
    return found


def _errors(matches: Sequence[Match]) -> Iterator[KindError]:
    durations: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for match in matches:
        if match.predicted is not None and match.measured is not None and match.predicted.stream is not Stream.RECEIVE:
            name = f"{match.predicted.action.module} {match.predicted.action.kind}"
            durations[name].append((match.predicted.work_ns, match.measured.work_ns))
    for name, pairs in sorted(durations.items()):
        count = len(pairs)
        before, after = sum(p for p, _ in pairs) / count, sum(m for _, m in pairs) / count
        yield KindError(name, count, before, after, sum(abs(m - p) for p, m in pairs) / count)


def _divergence(predicted: Timeline, measured: Timeline, matches: Sequence[Match], unit: Unit) -> Divergence | None:
    """The first action, in predicted time, that is another one or at another time."""
    found = [*_other_orders(predicted, measured), *_other_times(predicted, matches, unit)]
    return min(found, key=lambda d: (d.at_ns, d.lane), default=None)


def _other_orders(predicted: Timeline, measured: Timeline) -> Iterator[Divergence]:
    """The first place on each lane at which the two do not run the same action."""
    for lane in range(len(predicted.program.lanes)):
        both = (timeline.stream(lane, Stream.COMPUTE) for timeline in (predicted, measured))
        end = 0
        for expected, came in zip_longest(*both):
            if expected is None:
                yield Divergence(lane, came.action, end, f"lane {lane} ran {came.action}, which was not predicted")
                break
            if came is None or came.action != expected.action:
                what = "ended" if came is None else f"ran {came.action}"
                text = f"lane {lane} {what} where {expected.action} was predicted"
                yield Divergence(lane, expected.action, expected.start_ns, text)
                break
            end = expected.end_ns


def _other_times(predicted: Timeline, matches: Sequence[Match], unit: Unit) -> Iterator[Divergence]:
    allowed = TOLERANCE * predicted.makespan_ns
    for match in matches:
        before, after = match.predicted, match.measured
        if before is None or after is None or before.stream is not Stream.COMPUTE:
            continue
        for word, expected, came in (
            ("started", before.start_ns, after.start_ns),
            ("ended", before.end_ns, after.end_ns),
        ):
            if abs(came - expected) > allowed:
                late = "late" if came > expected else "early"
                text = (
                    f"{before.action} on lane {before.lane} {word} {unit.text(abs(came - expected))} {late}: "
                    f"at {unit.text(came)}, predicted {unit.text(expected)}"
                )
                yield Divergence(before.lane, before.action, before.start_ns, text)
                break
