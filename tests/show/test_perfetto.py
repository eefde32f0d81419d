"""The Perfetto JSON keeps the rules of the trace event format."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest

from hetsched.show.layer import Layer
from hetsched.show.perfetto import to_perfetto
from hetsched.sim.costs import Costs
from hetsched.sim.messages import message_pairs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Stream, Timeline
from tests.plan.pipelines import lowered, unlowered
from tests.show.steps import MS, changed, colocated_step, scaled_comparison

Events = list[dict[str, Any]]
NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "args"},
}


def faults_of(events: Events) -> list[str]:
    """What breaks the rules: fields, overlap on a track, arrows that do not lead from slice to slice, counters."""
    faults = [f"fields of {e}" for e in events if not NEEDED.get(e["ph"], {"?"}) <= set(e) or e.get("ts", 0) < 0]
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            slices[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"]))
    for track, spans in slices.items():
        # Times have whole nanoseconds; a double of microseconds is exact to less than one.
        faults += [f"overlap on {track}" for (_, end), (start, _) in pairwise(sorted(spans)) if start < end - 5e-4]
    arrows: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for e in events:
        if e["ph"] in "sf":
            if e["ph"] in arrows[e["id"]]:
                faults.append(f"arrow {e['id']} twice")
            arrows[e["id"]][e["ph"]] = e
            inside = [a <= e["ts"] + 5e-4 and e["ts"] <= b + 5e-4 for a, b in slices[e["pid"], e["tid"]]]
            faults += [] if any(inside) else [f"arrow {e['id']} is bound to no slice"]
    for number, ends in arrows.items():
        if set(ends) != {"s", "f"} or ends["s"]["ts"] > ends["f"]["ts"]:
            faults.append(f"arrow {number} does not lead from s to f")
    for e in events:
        if e["ph"] == "C" and not all(isinstance(v, int | float) for v in e["args"].values()):
            faults.append(f"counter {e}")
    return faults


def events_of(*timelines: Timeline) -> Events:
    data = json.loads(to_perfetto([Layer(f"layer {n}", timeline) for n, timeline in enumerate(timelines)]))
    assert set(data) == {"traceEvents", "displayTimeUnit"}
    return list(data["traceEvents"])


def crowded(timeline: Timeline) -> Timeline:
    """As measured: messages of one engine overlap."""
    return changed(
        timeline, lambda s: s if s.stream is Stream.COMPUTE else s._replace(end_ns=min(s.end_ns + 30 * MS, 10**9))
    )


@pytest.mark.parametrize("make", [lambda: [colocated_step()], lambda: [colocated_step(), crowded(colocated_step())]])
def test_a_trace_keeps_the_rules(make: Any) -> None:
    assert faults_of(events_of(*make())) == []


def test_every_span_is_a_slice_with_its_times() -> None:
    timeline = colocated_step()
    slices = Counter(
        (e["name"], round(e["ts"] * 1000), round(e["dur"] * 1000)) for e in events_of(timeline) if e["ph"] == "X"
    )
    assert slices == Counter((str(s.action), s.start_ns, s.duration_ns) for s in timeline.spans)


def test_an_arrow_leads_from_each_send_to_its_recv() -> None:
    timeline = colocated_step()
    events = events_of(timeline)
    lanes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    starts, ends = ({e["id"]: e for e in events if e["ph"] == phase} for phase in "sf")
    found = Counter((lanes[starts[n]["pid"]], lanes[ends[n]["pid"]], round(starts[n]["ts"] * 1000)) for n in starts)
    pairs = message_pairs(timeline)
    assert found == Counter((f"lane {a.lane}", f"lane {b.lane}", a.start_ns) for a, b in pairs)


def test_each_lane_is_a_process_with_a_track_an_engine_and_a_memory_counter() -> None:
    events = events_of(colocated_step())
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(processes.values()) == [f"lane {lane}" for lane in range(4)]
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    used = {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}
    assert set(tracks) == used
    counters = [e for e in events if e["ph"] == "C"]
    assert {e["pid"] for e in counters} == set(processes)
    # All vision forwards come first, and of its own pipeline lane 0 keeps 4 microbatches.
    assert max(e["args"]["held"] for e in counters) == 8


def test_the_lanes_of_a_prediction_say_how_its_times_were_scaled() -> None:
    layers, comparison = scaled_comparison()
    events = json.loads(to_perfetto(layers, comparison=comparison))["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names[3:5] == ["predicted lane 3 (times scaled by 0.25 to the same work)", "measured lane 0"]


def test_a_fused_pair_says_what_both_its_parts_work_on() -> None:
    timeline = simulate(lowered(unlowered("dualpipev", 2, 6)), Costs.constant(F=MS, I=MS, W=MS))
    args = {e["name"]: e["args"] for e in events_of(timeline) if e["ph"] == "X"}
    assert args["(llm:2F2;llm:1B0)OVERLAP_F_B"] == {
        "forward": {"module": "llm", "stage": 2, "first_microbatch": 2, "last_microbatch": 2},
        "backward": {"module": "llm", "stage": 1, "first_microbatch": 0, "last_microbatch": 0},
    }


def move(events: Events, phase: str, **fields: Any) -> Events:
    index = next(i for i, e in enumerate(events) if e["ph"] == phase and e.get("dur", 1))
    return [*events[:index], events[index] | fields, *events[index + 1 :]]


@pytest.mark.parametrize(
    ("phase", "fields"),
    [("X", {"dur": 1e9}), ("f", {"ts": 0.0}), ("s", {"id": "other"}), ("s", {"tid": 77}), ("X", {"ts": -1})],
)
def test_a_trace_that_breaks_a_rule_is_found(phase: str, fields: dict[str, Any]) -> None:
    assert faults_of(move(events_of(colocated_step()), phase, **fields))
