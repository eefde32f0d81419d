"""Two timelines of a step, action by action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hetsched.errors import ScheduleError
from hetsched.layout.placement import Topology
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


def test_timelines_of_other_plans_are_not_compared_and_the_first_difference_is_named() -> None:
    with pytest.raises(ScheduleError) as refused:
        compare(colocated_step(4), colocated_step(2))
    assert str(refused.value) == (
        "the two timelines are of different plans: vision was predicted on lanes 0, 1, 2, 3, and measured on lanes "
        "0, 1; give the plan that was trained"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: replace(t, modules=t.modules[1:]), "modules predicted are vision, llm, those measured llm;"),
        (
            lambda t: replace(
                t, modules=(t.modules[0], replace(t.modules[1], stages=(((0, 1),), *t.modules[1].stages)))
            ),
            "llm was predicted on lanes 0 | 1 | 2 | 3, and measured on lanes 0+1 | 0 | 1 | 2 | 3;",
        ),
        (
            lambda t: replace(t, modules=(replace(t.modules[0], has_backward=False), t.modules[1])),
            "vision has a backward or takes items in one of them only;",
        ),
        (lambda t: replace(t, edges=(replace(t.edges[0], stage=1),)), "those measured vision->llm at stage 1;"),
        (lambda t: replace(t, num_lanes=5), "4 lanes were predicted, and 5 measured;"),
    ],
)
def test_whatever_differs_between_two_plans_is_named(change: Callable[[Topology], Topology], said: str) -> None:
    step = colocated_step()
    other = replace(step, program=replace(step.program, topology=change(step.program.topology)))
    with pytest.raises(ScheduleError) as refused:
        compare(step, other)
    assert said in str(refused.value)


def test_the_text_has_both_timelines_the_errors_and_the_divergence() -> None:
    timeline = colocated_step()
    text = draw_comparison(compare(timeline, later_from(timeline, "llm:1F1", 30 * MS)), width=80)
    lines = text.splitlines()
    assert lines[0] == "predicted" and "measured" in lines
    assert sum(line.startswith("lane 3") for line in lines) == 2
    (row,) = (line.split() for line in lines if line.startswith("llm F "))
    assert row[2:] == ["16", "10", "ms", "11.875", "ms", "+18.8%", "1.875", "ms"]
    assert lines[-1].startswith("first divergence: llm:1F1 on lane 1")


def test_both_timelines_have_one_axis() -> None:
    timeline = colocated_step()
    lines = draw_comparison(compare(timeline, scaled(timeline, 2.0)), width=80).splitlines()
    predicted, measured = (line for line in lines if line.startswith("lane 0"))
    assert len(predicted) == len(measured)
    assert [len(line[8:88].rstrip(".")) for line in (predicted, measured)] == [40, 80]
    rulers = [line for line in lines if line.startswith("time")]
    assert rulers[0] == rulers[1]


def test_messages_have_no_error_and_what_is_rounded_to_nothing_has_no_sign() -> None:
    timeline = colocated_step()
    slow = changed(timeline, lambda s: s if s.stream is Stream.COMPUTE else s._replace(end_ns=s.end_ns + 9 * MS))
    shorter = changed(slow, lambda s: s._replace(end_ns=s.end_ns - 1) if is_llm(s, Kind.F) else s)
    text = draw_comparison(compare(timeline, shorter), width=80)
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "%" not in rows["llm SEND_F"] and "9 ms" in rows["llm SEND_F"]
    assert "+0.0%" in rows["llm F"] and "-0.0%" not in text
    assert "SEND: from when a message could leave" in text


def test_a_timeline_scaled_by_one_is_itself() -> None:
    timeline: Timeline = colocated_step()
    assert scaled(timeline, 1.0) == timeline
