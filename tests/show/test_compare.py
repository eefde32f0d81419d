"""Two timelines of a step, action by action."""

from __future__ import annotations

import pytest

from hetsched.errors import ScheduleError
from hetsched.schedule.action import Kind
from hetsched.show.compare import Comparison, Divergence, compare, scaled
from hetsched.show.table import draw_comparison
from hetsched.sim.timeline import Span, Stream, Timeline
from tests.show.steps import MS, changed, colocated_step, later_from


def diverging(comparison: Comparison) -> Divergence:
    assert comparison.divergence is not None
    return comparison.divergence


def test_a_timeline_does_not_differ_from_itself() -> None:
    timeline = colocated_step()
    comparison = compare(timeline, timeline)
    assert comparison.divergence is None
    assert [(e.error, e.mean_error_ns) for e in comparison.errors] == [(0.0, 0.0)] * len(comparison.errors)
    assert sum(e.count for e in comparison.errors) == sum(s.stream is not Stream.RECEIVE for s in timeline.spans)
    assert all(m.predicted == m.measured for m in comparison.matches)


def test_the_error_of_a_kind_is_of_its_mean_duration() -> None:
    timeline = colocated_step()
    slow = changed(timeline, lambda s: s._replace(end_ns=s.end_ns + 5 * MS) if is_llm(s, Kind.B) else s)
    errors = {e.name: e for e in compare(timeline, slow).errors}
    assert (errors["llm B"].count, errors["llm B"].error) == (16, 0.25)
    assert errors["llm B"].mean_error_ns == 5 * MS
    assert errors["llm F"].error == errors["vision B"].error == 0.0


def is_llm(span: Span, kind: Kind) -> bool:
    return span.action.module == "llm" and span.action.kind is kind


def test_the_first_action_that_is_late_is_named_and_not_those_it_delays() -> None:
    timeline = colocated_step()
    divergence = diverging(compare(timeline, later_from(timeline, "llm:1F1", 30 * MS)))
    assert (divergence.lane, str(divergence.action)) == (1, "llm:1F1")
    assert divergence.text.startswith("llm:1F1 on lane 1 ended 30 ms late: at ")


def test_what_stays_within_the_tolerance_does_not_diverge() -> None:
    timeline = colocated_step()
    assert compare(timeline, later_from(timeline, "llm:1F1", timeline.makespan_ns // 25)).divergence is None
    assert compare(timeline, later_from(timeline, "llm:1F1", timeline.makespan_ns // 15)).divergence is not None


def test_another_order_is_a_divergence_even_at_the_same_times() -> None:
    timeline = colocated_step()
    first, second = (s for s in timeline.stream(2, Stream.COMPUTE) if str(s.action) in ("vision:0F1", "vision:0F2"))
    other = {first: second.action, second: first.action}
    swapped = changed(timeline, lambda s: s._replace(action=other.get(s, s.action)))
    divergence = diverging(compare(timeline, swapped))
    assert divergence.text == "lane 2 ran vision:0F2 where vision:0F1 was predicted"


@pytest.mark.parametrize(("is_missing_in_measured", "text"), [(True, "lane 3 ended where"), (False, "not predicted")])
def test_a_missing_action_is_a_divergence(is_missing_in_measured: bool, text: str) -> None:
    whole = colocated_step()
    last = whole.stream(3, Stream.COMPUTE)[-1]
    cut = changed(whole, lambda s: None if s == last else s)
    pair = (whole, cut) if is_missing_in_measured else (cut, whole)
    comparison = compare(*pair)
    assert text in diverging(comparison).text
    assert sum(m.predicted is None or m.measured is None for m in comparison.matches) == 1


def test_a_prediction_without_a_unit_is_scaled_to_the_work_that_was_measured() -> None:
    timeline = colocated_step()
    comparison = compare(timeline, scaled(timeline, 0.25), is_scaled=True)
    assert comparison.scale == pytest.approx(0.25)
    assert comparison.divergence is None
    assert comparison.predicted.lower_bound_ns == timeline.lower_bound_ns // 4  # type: ignore[operator]
    assert compare(timeline, scaled(timeline, 0.25)).divergence is not None


def test_timelines_of_other_plans_are_not_compared() -> None:
    with pytest.raises(ScheduleError, match=r"llm of 4 stages on 4 lanes, and measured .* llm of 2 stages on 2 lanes"):
        compare(colocated_step(4), colocated_step(2))


def test_the_text_has_both_timelines_the_errors_and_the_divergence() -> None:
    timeline = colocated_step()
    text = draw_comparison(compare(timeline, later_from(timeline, "llm:1F1", 30 * MS)), width=80)
    lines = text.splitlines()
    assert lines[0] == "predicted" and "measured" in lines
    assert sum(line.startswith("lane 3") for line in lines) == 2
    (row,) = (line.split() for line in lines if line.startswith("llm F "))
    assert row[2:] == ["16", "10", "ms", "11.875", "ms", "+18.8%", "1.875", "ms"]
    assert lines[-1].startswith("first divergence: llm:1F1 on lane 1")


def test_a_timeline_scaled_by_one_is_itself() -> None:
    timeline: Timeline = colocated_step()
    assert scaled(timeline, 1.0) == timeline
