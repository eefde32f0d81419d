"""The measured timeline, from records written out in the test."""

from __future__ import annotations

import json
from dataclasses import replace

from hetsched.runtime.measure.recorder import Record
from hetsched.runtime.measure.trace import RankTrace, measured_timeline
from hetsched.schedule.action import parse_action
from hetsched.schedule.program import Program
from hetsched.sim.bubble import Bubble, bubbles
from hetsched.sim.timeline import Stream, Timeline
from tests.plan.literal import literal, pipeline, replicated

US = 1000


def program() -> Program:
    return literal([pipeline([0], [1])], 1, "0F0 0SEND_F0 0RECV_B0 0B0", "1RECV_F0 1F0 1B0 1SEND_B0")


def trace(lane: int, *records: tuple[str, int, int, int], began_us: int = 1000) -> RankTrace:
    """Records of (action of llm, start, end, waited) in microseconds."""
    made = (
        Record(parse_action(text if ":" in text else f"llm:{text}"), a * US, b * US, (a + w) * US)
        for text, a, b, w in records
    )
    return RankTrace(lane, began_us * US, tuple(made))


FIRST = trace(0, ("0F0", 0, 100, 0), ("0SEND_F0", 100, 110, 0), ("0RECV_B0", 110, 112, 0), ("0B0", 112, 900, 600))
SECOND = trace(1, ("1RECV_F0", 0, 5, 0), ("1F0", 5, 300, 125), ("1B0", 300, 600, 0), ("1SEND_B0", 600, 620, 0))


def spans(timeline: Timeline, lane: int, stream: Stream) -> list[tuple[str, int, int]]:
    return [(str(s.action), s.start_ns // US, s.end_ns // US) for s in timeline.stream(lane, stream)]


def test_waiting_is_idle_and_a_message_is_on_its_way_until_its_user_goes_on() -> None:
    timeline = measured_timeline(program(), [FIRST, SECOND])
    assert spans(timeline, 0, Stream.COMPUTE) == [("llm:0F0", 0, 100), ("llm:0B0", 712, 900)]
    assert spans(timeline, 1, Stream.COMPUTE) == [("llm:1F0", 130, 300), ("llm:1B0", 300, 600)]
    assert spans(timeline, 0, Stream.SEND) == [("llm:0SEND_F0", 100, 130)]
    assert spans(timeline, 0, Stream.RECEIVE) == [("llm:0RECV_B0", 600, 712)]
    transfer = bubbles(timeline)[1].transfer
    assert bubbles(timeline)[0] == Bubble(dependency=318 * US, transfer=112 * US, imbalance=182 * US) and transfer == 0


def test_waiting_inside_an_action_is_idle_too_and_no_work() -> None:
    """Of the 300 us of lane 1's backward 90 were waiting for messages of its own."""
    records = [replace(r, inner_wait_ns=90 * US) if str(r.action) == "llm:1B0" else r for r in SECOND.records]
    whole = measured_timeline(program(), [FIRST, SECOND])
    parts = measured_timeline(program(), [FIRST, RankTrace(1, SECOND.began_ns, tuple(records))])
    assert [s.waited_ns for s in parts.stream(1, Stream.COMPUTE)] == [0, 90 * US]
    assert spans(parts, 1, Stream.COMPUTE) == spans(whole, 1, Stream.COMPUTE)
    before, after = bubbles(whole)[1], bubbles(parts)[1]
    assert (after.total - before.total, after.transfer - before.transfer) == (90 * US, 90 * US)
    assert bubbles(parts)[0].imbalance == bubbles(whole)[0].imbalance - 90 * US


def test_a_message_is_on_its_way_until_somebody_saw_it_arrive() -> None:
    """The backward's gradient, posted at 620 us, was seen at 650, long before its user went on at 712."""

    def seen(at_us: int) -> Timeline:
        at_ns = FIRST.began_ns + at_us * US - SECOND.began_ns
        records = [replace(r, arrived_ns=at_ns) if str(r.action) == "llm:1SEND_B0" else r for r in SECOND.records]
        return measured_timeline(program(), [FIRST, RankTrace(1, SECOND.began_ns, tuple(records))])

    assert spans(seen(650), 0, Stream.RECEIVE) == [("llm:0RECV_B0", 600, 650)]
    assert spans(seen(10), 0, Stream.RECEIVE) == [("llm:0RECV_B0", 600, 620)]


def test_a_measured_timeline_is_read_as_it_was_written() -> None:
    records = [replace(r, inner_wait_ns=90 * US) if str(r.action) == "llm:1B0" else r for r in SECOND.records]
    timeline = measured_timeline(program(), [FIRST, RankTrace(1, SECOND.began_ns, tuple(records))])
    assert Timeline.from_json(json.loads(json.dumps(timeline.to_json()))) == timeline


def test_ranks_that_began_later_are_later() -> None:
    late = RankTrace(1, SECOND.began_ns + 7 * US, SECOND.records)
    timeline = measured_timeline(program(), [FIRST, late])
    assert spans(timeline, 1, Stream.COMPUTE)[0] == ("llm:1F0", 137, 307)
    assert timeline.makespan_ns == 900 * US


def test_a_lane_is_its_busiest_rank() -> None:
    idle = trace(0, ("0F0", 0, 90, 0), ("0SEND_F0", 90, 95, 0), ("0RECV_B0", 95, 96, 0), ("0B0", 96, 900, 700))
    for ranks in ([FIRST, idle, SECOND], [idle, SECOND, FIRST]):
        assert spans(measured_timeline(program(), ranks), 0, Stream.COMPUTE)[0] == ("llm:0F0", 0, 100)


def test_a_collective_begins_when_its_last_rank_is_there() -> None:
    collective = literal([pipeline([0])], 1, "0F0 0B0 0REDUCE_GRAD")
    first = trace(0, ("0F0", 0, 40, 0), ("0B0", 40, 100, 0), ("0REDUCE_GRAD", 100, 170, 70))
    second = trace(0, ("0F0", 0, 40, 20), ("0B0", 40, 140, 80), ("0REDUCE_GRAD", 140, 170, 30))
    last = spans(measured_timeline(collective, [first, second]), 0, Stream.COMPUTE)[-1]
    assert last == ("llm:0REDUCE_GRAD", 140, 170)


def test_of_several_messages_only_the_last_was_waited_for() -> None:
    modules = [replicated(0, 1), pipeline([1])]
    edge = [("vision", "llm", 0)]
    lanes = ("vision:0F0 vision->llm:0SEND_F0", "vision:0F0 vision->llm:0SEND_F0 vision->llm:0RECV_F0 0F0")
    first = trace(0, ("vision:0F0", 0, 300, 0), ("vision->llm:0SEND_F0", 300, 310, 0))
    second = trace(
        1,
        ("vision:0F0", 0, 50, 0),
        ("vision->llm:0SEND_F0", 50, 60, 0),
        ("vision->llm:0RECV_F0", 60, 61, 0),
        ("0F0", 61, 500, 300),
    )
    timeline = measured_timeline(literal(modules, 1, *lanes, edges=edge), [first, second])
    assert [(s.peer, s.start_ns // US, s.end_ns // US) for s in timeline.stream(1, Stream.RECEIVE)] == [
        (1, 50, 60),
        (0, 300, 361),
    ]
