"""Costs by pattern, from the caller or from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetsched.check.validate import check
from hetsched.errors import ScheduleError
from hetsched.schedule.action import Kind, parse_action
from hetsched.schedule.table import ActionTable, parse_pattern
from hetsched.sim.costs import Costs, Link, duration_array, load_costs, message_times
from tests.plan.literal import literal, pipeline, replicated

TABLE = {"F": 1, "llm:F": 2, "llm:3F": 3, "llm:F5": 4, "llm:3F5": 5, "llm:F@1": 6, "llm:F5@1": 7}


@pytest.mark.parametrize(
    ("module", "stage", "microbatch", "lane", "value"),
    [
        ("audio", 3, 5, 1, 1),
        ("llm", 0, 0, 0, 2),
        ("llm", 3, 0, 0, 3),
        ("llm", 0, 5, 0, 4),
        ("llm", 3, 5, 0, 5),
        ("llm", 3, 0, 1, 6),
        ("llm", 3, 5, 1, 7),
    ],
)
def test_the_most_specific_pattern_counts(module: str, stage: int, microbatch: int, lane: int, value: int) -> None:
    assert ActionTable.parse(TABLE).find(Kind.F, module, stage, microbatch=microbatch, lane=lane) == value


@pytest.mark.parametrize("text", [*TABLE, "OVERLAP_F_B", "vision->llm:SEND_F", "vision->llm:0SEND_B3", "REDUCE_GRAD@2"])
def test_patterns_print_as_they_parse(text: str) -> None:
    assert str(parse_pattern(text)) == text


@pytest.mark.parametrize("text", ["", "X", "llm", "llm:", "3F", "llm:03F", "llm:F-1", "llm:F5@", "llm:F0-3", " F"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("costs", "action", "expected"),
    [
        ({"F": 3}, "llm:0F2", 3),
        ({"F": 3}, "llm:0F2-4", 9),
        ({"F": 3, "llm:F3": 5}, "llm:0F2-4", 11),
        ({"I": 3, "W": 4}, "llm:0B0", 7),
        ({"I": 3, "W": 4, "B": 6}, "llm:0B0", 6),
        ({"F": 3, "F3": 5}, "llm:0F2-4", 11),
        ({"F": 3, "B": 4}, "(llm:0F1;llm:1B0)OVERLAP_F_B", 7),
        ({"F": 3, "B": 4, "OVERLAP_F_B": 5}, "(llm:0F1;llm:1B0)OVERLAP_F_B", 5),
        ({"F": 3}, "llm:0REDUCE_GRAD", 0),
        ({"REDUCE_GRAD": 9}, "llm:0REDUCE_GRAD", 9),
    ],
)
def test_durations(costs: dict[str, int], action: str, expected: int) -> None:
    assert Costs(ActionTable.parse(costs)).duration_ns(parse_action(action), lane=0) == expected


def test_an_action_without_a_cost_is_refused() -> None:
    flat = check(literal([pipeline([0])], 1, "0F0 0B0"))
    with pytest.raises(ScheduleError, match="no cost for llm:0B0 on lane 0; state one for B at least"):
        duration_array(flat, Costs.constant(F=1, I=2))


@pytest.mark.parametrize("extra", [{}, {"llm:F1": 70}, {"vision:F@0": 70}, {"F1": 70}], ids=str)
def test_the_compiled_durations_are_those_of_each_action(extra: dict[str, int]) -> None:
    lane = (
        "0UNSHARD vision:0F0-1 0F0 1F0 0F1 (llm:1F1;llm:1B0)OVERLAP_F_B 0I0 0W0 1B1 0B1 vision:0B0 vision:0B1 0RESHARD"
    )
    program = literal([pipeline([0], [0]), replicated(0)], 2, lane)
    costs = Costs(ActionTable.parse({"F": 1, "llm:1F": 2, "B": 5, "I": 7, "W": 11, "UNSHARD": 13, **extra}))
    expected = [costs.duration_ns(action, lane=0) for action in program.lanes[0]]
    assert duration_array(check(program), costs).tolist() == expected


@pytest.mark.parametrize("extra", [{}, {"F1": 70}, {"llm:2F@0": 9}])
def test_what_is_looked_up_once_is_what_each_action_costs(extra: dict[str, int]) -> None:
    costs = Costs(ActionTable.parse({"F": 3, "B": 5, "llm:1F": 4} | extra))
    texts = "llm:0F0 llm:1F0-1 llm:1F2 llm:1F3-6 llm:0F1 llm:2F0 llm:0B0 llm:0REDUCE_GRAD"
    pairs = ["(llm:0F1;llm:0B0)OVERLAP_F_B", "(llm:1F1;llm:2B0)OVERLAP_F_B"]
    actions, find = 2 * [parse_action(text) for text in (*texts.split(), *pairs)], costs.finder()
    for lane in (0, 1):
        assert [find(a, lane) for a in actions] == [costs.duration_ns(a, lane=lane) for a in actions]


@pytest.mark.parametrize("module", ["", "llm:"])
@pytest.mark.parametrize(("pattern", "expected"), [("F@1", [3, 9, 3, 3, 9]), ("F5", [3, 3, 9, 3, 3])])
def test_what_one_lane_or_microbatch_costs_is_not_taken_for_another(
    module: str, pattern: str, expected: list[int]
) -> None:
    asked = [(parse_action(f"llm:0F{m}"), lane) for m, lane in ((0, 0), (0, 1), (5, 0), (0, 0), (0, 1))]
    costs = Costs(ActionTable.parse({"F": 3, module + pattern: 9}))
    assert [costs.duration_ns(action, lane=lane) for action, lane in asked] == expected
    find = Costs(costs.durations_ns).finder()
    assert [find(action, lane) for action, lane in asked] == expected


def test_a_message_takes_latency_and_bytes_over_bandwidth_rounded_up() -> None:
    assert Link().time_ns(10**9) == 0
    assert Link(5, 1_000_000_000).time_ns(7) == 12
    assert Link(5, 3_000_000_000).time_ns(7) == 5 + 3
    program = literal([pipeline([0], [1])], 2, "0F0 0SEND_F0 0F1 0SEND_F1", "1RECV_F0 1F0 1RECV_F1 1F1")
    sizes = ActionTable.parse({"llm:SEND_F": 10, "llm:SEND_F1": 20})
    costs = Costs(ActionTable({}), sizes, links={"default": Link(99), "llm": Link(1, 1_000_000_000)})
    assert message_times(program, costs).tolist() == [11, 21, 1, 1]


def test_a_cost_file_is_read_and_hashed(tmp_path: Path) -> None:
    data = {"durations_ns": {"F": 1, "llm:0B": 2}, "links": {"default": {"latency_ns": 3, "bytes_per_s": 4}}}
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(data))
    costs = load_costs(path)
    assert costs.links["default"] == Link(3, 4)
    assert costs.digest == Costs.from_json({**data, "durations_ns": {"llm:0B": 2, "F": 1}}).digest
    assert costs.digest != Costs.from_json({**data, "durations_ns": {"llm:0B": 2, "F": 2}}).digest


HAS = "; a cost file has durations_ns and, if needed, message_bytes, held_bytes, links"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", f"this is no object{HAS}"),
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        (b"\xff{}", "not JSON: "),
        ("{}", f"durations_ns is missing{HAS}"),
        ('{"durations_ns": {"F": 1}, "more": {}}', f"unknown key 'more'{HAS}"),
        ('{"durations_ns": {"F": 1.5}}', "F: 1.5 is not an integer"),
        ('{"durations_ns": {"F": -1}}', "F: -1 is not an integer of at least 0"),
        ('{"durations_ns": {"F": true}}', "F: True is not an integer"),
        ('{"durations_ns": {"bogus": 1}}', "'bogus' names no actions"),
        ('{"durations_ns": []}', "durations_ns is an object, not []"),
        ('{"durations_ns": {}, "links": {"llm": 5}}', "link llm: an object with latency_ns and bytes_per_s, not 5"),
        ('{"durations_ns": {}, "links": {"llm": {"speed": 5}}}', "link llm: an object with latency_ns"),
        (
            '{"durations_ns": {}, "links": {"llm": {"bytes_per_s": 0}}}',
            "link llm: bytes_per_s is an integer of at least 1",
        ),
        (
            '{"durations_ns": {}, "links": {"llm": {"latency_ns": -1}}}',
            "link llm: latency_ns is an integer of at least 0",
        ),
    ],
)
def test_a_cost_file_that_makes_no_sense_is_refused(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ScheduleError) as refused:
        load_costs(path)
    assert str(refused.value).startswith(f"{path}: {said}")


def test_a_cost_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"^cannot read .*costs\.json: No such file or directory$"):
        load_costs(tmp_path / "costs.json")
