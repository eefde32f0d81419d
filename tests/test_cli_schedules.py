"""The commands that schedules are read, checked, timed, drawn and exchanged with."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hetsched.cli import main
from hetsched.plan import load_plan
from hetsched.schedule.registry import PIPELINES
from hetsched.schedule.serialize import program_from_json, program_to_json
from hetsched.schedule.table import ActionTable
from hetsched.sim.costs import Costs, Link
from hetsched.sim.overlap import Overlap
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Timeline, make_timeline
from hetsched.stepprogram import step_program
from tests.plan.good_plan import GOOD
from tests.plan.literal import literal, pipeline, replicated

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("here")
FLAGS = ["--schedule", "1f1b", "--stages", "4", "--microbatches", "8"]
PAIR = literal([pipeline([0], [0])], 2, "0F0 1F0 (llm:0F1;llm:1B0)OVERLAP_F_B 0B0 1F1 1I1 1W1 0I1 0W1")


def simulated(capsys: Output, *flags: str) -> dict[str, Any]:
    assert main(["simulate", *flags, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def usage_error(capsys: Output, *argv: str) -> str:
    """The one line that a wrong command line gets, with exit 2."""
    try:
        code: object = main(argv)
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line


def schedule(name: str, stages: int, microbatches: int, cost: str, *more: str) -> list[str]:
    flags = ["--schedule", name, "--stages", str(stages), "--microbatches", str(microbatches), "--cost", cost]
    return [*flags, *more]


@dataclass(frozen=True)
class Formula:
    """What a paper says of its schedule on P lanes with M microbatches; ``work`` is that of a lane."""

    name: str
    stages: int
    cost: str
    makespan: int
    work: int
    live: list[int]


P, M = 4, 8
FORMULAS = [
    Formula("gpipe", P, "F=1,B=2", (M + P - 1) * 3, M * 3, [M] * P),
    Formula("1f1b", P, "F=1,B=2", (M + P - 1) * 3, M * 3, [4, 3, 2, 1]),
    Formula("interleaved", 2 * P, "F=1,B=2", (2 * M + P - 1) * 3, 2 * M * 3, [11, 9, 7, 5]),
    Formula("zb-h1", P, "F=1,I=1,W=1", M * 3 + P - 1, M * 3, [P] * P),
    Formula("zb-v", 2 * P, "F=1,I=1,W=1", 2 * M * 3 + P - 1, 2 * M * 3, [2 * P] * P),
    Formula("dualpipev", 2 * P, "F=1,I=1,W=1", 2 * M * 3 + (P - 1) * 2, 2 * M * 3, [2 * P + 1] * P),
]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
def test_simulate_finds_the_figures_of_the_papers(formula: Formula, capsys: Output) -> None:
    figures = simulated(capsys, *schedule(formula.name, formula.stages, M, formula.cost))
    makespan = formula.makespan
    assert (figures["makespan"], figures["lanes"], figures["stages"]) == (makespan, P, formula.stages)
    assert figures["peak_live_microbatches"] == formula.live
    bubble = figures["bubble"]
    causes = {"warmup", "cooldown", "dependency", "transfer", "imbalance"}
    assert set(bubble) == {"total", "fraction"} | causes
    assert bubble["total"] == P * (makespan - formula.work) == sum(bubble[cause] for cause in causes)
    assert bubble["fraction"] == pytest.approx(1 - formula.work / makespan, abs=1e-15)
    assert figures["lower_bound"] <= makespan
    assert figures["gap"] == makespan / figures["lower_bound"] - 1


def test_interleaving_takes_any_number_of_virtual_stages(capsys: Output) -> None:
    figures = simulated(capsys, *schedule("interleaved", 12, 8, "F=1,B=2", "--virtual-stages", "3"))
    assert (figures["lanes"], figures["makespan"]) == (4, 3 * 8 * 3 + 3 * 3)


@pytest.mark.parametrize(
    ("cost", "makespan"),
    [
        ("F=1,B=2", 33),
        ("F=0.5,B=1", 16.5),
        ("F=0.1,B=0.2", 3.3),
        ("F=0.1,I=0.1,W=0.1", 3.3),
        ("F=.25,B=.5", 8.25),
        ("F=1e-1,B=2E-1", 3.3),
        ("F=0.00000001,B=0.00000002", 33e-8),
        ("F=1000000,B=2000000", 33_000_000),
        ("F=0,B=0", 0),
        ("F=1,B=2,F0=4", 33 + 4 * 3),
        ("F=1,B=2,llm:0F=0.5", 32.5),
    ],
)
def test_times_are_exact_in_the_unit_of_the_costs(cost: str, makespan: float, capsys: Output) -> None:
    figures = simulated(capsys, *schedule("1f1b", 4, 8, cost))
    assert figures["makespan"] == makespan
    assert isinstance(figures["makespan"], type(makespan))


def test_a_cost_file_gives_nanoseconds_links_and_memory(here: Path, capsys: Output) -> None:
    costs = {"durations_ns": {"F": 10, "B": 20}, "links": {"default": {"latency_ns": 5}}}
    (here / "costs.json").write_text(json.dumps(costs))
    flags = ["--schedule", "1f1b", "--stages", "2", "--microbatches", "1", "--cost-file", "costs.json"]
    figures = simulated(capsys, *flags)
    assert figures["makespan"] == 2 * 30 + 2 * 5
    assert figures["bubble"]["transfer"] == 5
    assert main(["show", *flags]) == 0
    assert "step 70 ns" in capsys.readouterr().out


def test_a_plan_is_predicted_by_costs_taken_from_a_trace(here: Path, capsys: Output) -> None:
    """Exported by stage they are those of every microbatch alike, so all predicted forwards of a stage are too."""
    (here / "plan.toml").write_text(GOOD)
    program = step_program(load_plan(here / "plan.toml"))
    costs = Costs(
        ActionTable.parse({"llm:F": 1000, "llm:F0": 4000, "B": 3000, "vision:F": 500}), links={"llm": Link(70)}
    )
    trace = simulate(program, costs)
    (here / "trace.json").write_text(json.dumps(trace.to_json()))
    predicted = {}
    for flags in ([], ["--by-microbatch"]):
        assert main(["export", "trace.json", "--format", "costs", "-o", "costs.json", *flags]) == 0
        assert main(["show", "plan.toml", "--cost-file", "costs.json", "--json"]) == 0
        predicted[len(flags)] = Timeline.from_json(json.loads(capsys.readouterr().out))
    assert predicted[1].spans == trace.spans
    forwards = {s.duration_ns for s in predicted[0].spans if str(s.action).startswith("llm:0F")}
    assert forwards == {(4000 + 1000 * (program.num_microbatches - 1)) // program.num_microbatches}
    assert main(["show", "plan.toml", "--cost-file", "costs.json", "--measured", "trace.json"]) == 0
    words = capsys.readouterr().out
    assert "scaled" not in words and "no action diverges" in words


def test_train_prints_what_the_last_step_hid(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    overlaps = [
        Overlap("vision->llm, forward", 8, 2_500_000, 40_000_000, 10_000_000),
        Overlap("llm, context", 2, 0, 0, 0),
    ]
    (here / "plan.toml").write_text(GOOD)
    (here / "overlap.json").write_text(json.dumps([overlap.to_json() for overlap in overlaps]))
    monkeypatch.setattr("hetsched.train.run.train_plan", lambda *_, **options: here / "metrics.jsonl")
    assert main(["train", "plan.toml", "--overlap"]) == 0
    _, head, first, second, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["messages", "MB", "under", "way", "exposed", "hidden"]
    assert " ".join(first.split()) == "vision->llm, forward 8 2.500 40 ms 10 ms 75.0%"
    assert " ".join(second.split()) == "llm, context 2 0.000 0 ms 0 ms 100.0%"
    assert note.startswith("under way: on CPUs")


def test_simulate_without_json_says_the_same_in_words(capsys: Output) -> None:
    assert main(["simulate", *FLAGS, "--cost", "F=0.5,B=1"]) == 0
    words = capsys.readouterr().out
    for expected in ("makespan     16.5", "lower bound  16.5, gap 0.0%", "bubble       18, 27.3%", "4 3 2 1"):
        assert expected in words


def test_the_written_program_is_the_one_that_was_timed(here: Path, capsys: Output) -> None:
    figures = simulated(capsys, *schedule("zb-v", 6, 5, "F=1,I=1,W=1", "-o", "program"))
    program = program_from_json(json.loads((here / "program").read_text()))
    rows = tuple(tuple(action for action in lane if action.kind.is_compute) for lane in program.lanes)
    assert rows == PIPELINES["zb-v"].rows(3, 5, module="llm", num_virtual=2)
    assert main(["check", "program"]) == 0
    assert main(["show", "program", "--cost", "F=1,I=1,W=1"]) == 0
    assert f"step {figures['makespan']} simulated," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["simulate"], "--schedule"),
        (["simulate", *FLAGS], "--cost"),
        (["simulate", *FLAGS, "--cost", ""], "--cost"),
        (["simulate", *FLAGS, "--cost", "F"], "'F'"),
        (["simulate", *FLAGS, "--cost", "F=one"], "'F=one'"),
        (["simulate", *FLAGS, "--cost", "F=-1,B=2"], "'F=-1'"),
        (["simulate", *FLAGS, "--cost", "F=nan,B=2"], "'F=nan'"),
        (["simulate", *FLAGS, "--cost", "F=inf,B=2"], "'F=inf'"),
        (["simulate", *FLAGS, "--cost", "F=1e999,B=2"], "'F=1e999'"),
        (["simulate", *FLAGS, "--cost", "F=1;B=2"], "'F=1;B=2'"),
        (["simulate", *FLAGS, "--cost", "F=1,B=2,"], "''"),
        (["simulate", *FLAGS, "--cost", "F=1,X=2"], "'X'"),
        (["simulate", *FLAGS, "--cost", "F=1,F=2,B=2"], "F twice"),
        (["simulate", *FLAGS, "--cost", "F=1"], "simulate: --cost: no cost for llm:0B0 on lane 0; state B"),
        (["simulate", *FLAGS, "--cost", "F=1,I=1"], "no cost for llm:0B0"),
        (
            ["simulate", *FLAGS, "--cost-file", "no_costs.json"],
            "no_costs.json: no cost for llm:0F0 on lane 0; state F, B in",
        ),
        (
            ["show", "good.toml", "--cost-file", "no_costs.json"],
            "; state vision:F, llm:F, llm:B, vision:B in its durations",
        ),
        (["show", "pair.json", "--cost", "W=1"], "no cost for llm:0F0 on lane 0; state F, I"),
        (["simulate", *FLAGS, "--cost-file", "."], ". is a folder; name a file in it"),
        (["simulate", *FLAGS, "--cost", "F=1,B=3,I=1,W=1"], "B is not the sum"),
        (["simulate", *FLAGS, "--cost", "F=1,B=2,SEND_F=1"], "--cost-file"),
        (["simulate", *FLAGS, "--cost", "F=99999999999999999999,B=2"], "too large"),
        (["simulate", *FLAGS, "--cost", "F=1,B=2.0000000000000000000000001"], "decimals"),
        (["simulate", *FLAGS, "--cost-file", "missing.json"], "missing.json"),
        (["simulate", *FLAGS, "--cost", "F=1,B=2", "--cost-file", "missing.json"], "--cost-file"),
        (["simulate", *schedule("zb-h1", 4, 8, "F=1,B=2")], "no cost for llm:0I0 on lane 0; state I, W"),
        (["simulate", *schedule("1F1B", 4, 8, "F=1,B=2")], "'1F1B'"),
        (["simulate", *schedule("1f1b", 0, 8, "F=1,B=2")], "--stages"),
        (["simulate", *schedule("1f1b", 4, 0, "F=1,B=2")], "--microbatches"),
        (["simulate", *schedule("1f1b", 4, 8, "F=1,B=2", "--virtual-stages", "0")], "--virtual-stages"),
        (["simulate", *schedule("1f1b", 4, 8, "F=1,B=2", "--virtual-stages", "2")], "interleaved takes any number"),
        (["simulate", *schedule("zb-v", 4, 8, "F=1,I=1,W=1", "--virtual-stages", "1")], "zb-v has 2 on each lane"),
        (["simulate", *schedule("zb-v", 5, 8, "F=1,I=1,W=1")], "multiple of 2"),
        (["simulate", *schedule("interleaved", 4, 8, "F=1,B=2", "--virtual-stages", "3")], "multiple of 3"),
        (["simulate", *FLAGS, "--cost", "F=1,B=2", "-o", "nowhere/program.json"], "nowhere/program.json"),
        (["simulate", "sound.csv", *FLAGS, "--cost", "F=1,B=2"], "sound.csv"),
        (["check"], "FILE"),
        (["check", "missing.csv"], "missing.csv"),
        (["check", "."], ". is a folder; name a file in it"),
        (["show"], "FILE"),
        (["show", "sound.csv", *FLAGS], "FILE"),
        (["show", "--schedule", "1f1b", "--stages", "4"], "--microbatches"),
        (["show", "--stages", "4"], "--schedule"),
        (["show", "--cost", "F=1,B=2"], "FILE"),
        (["show", "good.toml", "--cost", "F=1,B=2"], "a plan takes --cost-file"),
        (["show", "sound.csv", "--cost", "F=1"], "no cost for llm:0B0"),
        (["show", "sound.csv", "--width", "0"], "--width"),
        (["show", "sound.csv", "--format", "svg", "--width", "80"], "--width is for text"),
        (["show", "sound.csv", "--json", "--width", "80"], "--width is for text"),
        (["export", "sound.csv"], "--format"),
        (["export", "sound.csv", "--format", "xml"], "'xml'"),
        (["export", "sound.csv", "--format", "costs"], "that is no timeline"),
        (["export", "sound.csv", "--format", "json", "--by-microbatch"], "needs --format costs"),
        (["export", "missing.csv", "--format", "json"], "missing.csv"),
        (["export", "sound.csv", "--format", "json", "-o", "nowhere/out"], "nowhere/out"),
        (["train", "sound.csv"], "sound.csv is a program; training takes a plan"),
        (["train", "trace.json"], "trace.json is a timeline; training takes a plan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_gets_one_line_and_exit_2(argv: list[str], said: str, here: Path, capsys: Output) -> None:
    (here / "sound.csv").write_text("0F0,0B0\n1F0,1B0\n")
    (here / "good.toml").write_text(GOOD)
    (here / "no_costs.json").write_text('{"durations_ns": {}}')
    (here / "pair.json").write_text(json.dumps(program_to_json(PAIR)))
    trace = simulate(PAIR, Costs.constant(F=1, B=2, I=1, W=1))
    (here / "trace.json").write_text(json.dumps(trace.to_json()))
    assert said in usage_error(capsys, *argv)


def test_simulate_counts_in_the_right_number(capsys: Output) -> None:
    assert main(["simulate", *schedule("gpipe", 1, 1, "F=1,B=2")]) == 0
    assert capsys.readouterr().out.startswith("gpipe: 1 stage on 1 lane, 1 microbatch, simulated\n")


def test_simulate_says_what_is_live_on_lanes_of_one_stage_and_of_several(capsys: Output) -> None:
    assert main(["simulate", *FLAGS, "--cost", "F=1,B=2"]) == 0
    assert capsys.readouterr().out.endswith("live         4 3 2 1: most microbatches held at once, by lane\n")
    assert main(["simulate", *schedule("zb-v", 4, 4, "F=1,I=1,W=1")]) == 0
    assert capsys.readouterr().out.endswith("live         4 4: most (stage, microbatch) pairs held at once, by lane\n")


def test_show_draws_lanes_over_time(capsys: Output) -> None:
    assert main(["show", *schedule("1f1b", 2, 3, "F=1,B=2"), "--width", "36"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "time    0              5              10",
        "lane 0  F0|F1|......B0===|F2|B1===|...B2===|   25% idle, 2 live",
        "lane 1  ...F0|B0===|F1|B1===|F2|B2===|......   25% idle, 1 live",
        "step 12 simulated, idle 25.0% of lane time, 0.0% above the lower bound",
        "key: F0- forward of microbatch 0, B= backward, | end, . idle; "
        "live: most microbatches of llm held at once, F to end of B",
    ]


def test_show_names_stages_encoders_and_pairs_where_they_are_needed(here: Path, capsys: Output) -> None:
    """A lane with two stages, and encoders that begin alike."""
    program = literal(
        [pipeline([0], [0]), replicated(0, name="vision"), replicated(0, name="video")],
        2,
        "vision:0F0-1 video:0F0 video:0F1 0F0 1F0 (llm:0F1;llm:1B0)OVERLAP_F_B 0B0 1F1 1I1 1W1 0I1 0W1 "
        "video:0B0 video:0B1 vision:0B0-1",
        edges=[("vision", "llm", 0), ("video", "llm", 0)],
    )
    (here / "program.json").write_text(json.dumps(program_to_json(program)))
    assert main(["show", "program.json", "--cost", "F=1,I=1,W=1", "--width", "240"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for label in ("iF0-1-", "vF1-", "1F0-", "0F1&1B0=", "0B0=", "1I1=", "1W1~"):
        assert label in lines[1]
    assert lines[2].endswith("; v is video; i is vision")
    assert lines[3].startswith("key: 1F0- forward of microbatch 0 in stage 1, ")


def test_show_keeps_the_shape_of_many_lanes_and_microbatches_in_narrow_columns(capsys: Output) -> None:
    assert main(["show", *schedule("1f1b", 16, 64, "F=1,B=2")]) == 0
    _, *lanes, _, hint, _ = capsys.readouterr().out.splitlines()
    assert "--width" in hint and "--format html" in hint
    rows = [lane[9:129] for lane in lanes]
    for lane, row in enumerate(rows):
        assert set(row) <= set("FB.=") and row.strip(".")[0] == "F" and row.strip(".")[-1] in "B="
        # The ramps of warmup and cooldown.
        assert len(row) - len(row.lstrip(".")) == lane * 120 // 237
        assert len(row) - len(row.rstrip(".")) == pytest.approx(lane * 2 * 120 / 237, abs=1)


@pytest.mark.parametrize("columns", [80, 100, 10])
def test_no_line_is_longer_than_a_terminal(columns: int, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["show", *schedule("1f1b", 12, 24, "F=1,B=2")]
    assert main(flags) == 0
    assert len(capsys.readouterr().out.splitlines()[1]) > 120
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == max(columns, 49)
    assert main([*flags, "-o", "out.txt"]) == 0
    assert len(Path("out.txt").read_text().splitlines()[1]) > 120


def test_a_timeline_that_show_wrote_is_drawn_as_it_was(here: Path, capsys: Output) -> None:
    (here / "good.toml").write_text(GOOD)
    assert main(["show", "good.toml"]) == 0
    predicted = capsys.readouterr().out
    assert main(["show", "good.toml", "--json"]) == 0
    (here / "timeline.json").write_text(capsys.readouterr().out)
    assert main(["show", "timeline.json"]) == 0
    # A file is in nanoseconds, and does not say that nobody measured its costs.
    no_unit = " simulated (costs are estimates: times have no unit),"
    assert capsys.readouterr().out == predicted.replace(no_unit, " ms simulated,") != predicted
    assert main(["check", "timeline.json"]) == 0


def test_a_measured_timeline_of_a_plan_is_drawn_in_the_form_of_the_predicted_one(here: Path, capsys: Output) -> None:
    """The same lanes, names and figures; the times are those of the file, and it knows no bound."""
    (here / "good.toml").write_text(GOOD)
    main(["show", "good.toml", "--json"])
    predicted = Timeline.from_json(json.loads(capsys.readouterr().out))
    spans = [span._replace(start_ns=span.start_ns * 3, end_ns=span.end_ns * 3) for span in predicted.spans]
    (here / "measured.json").write_text(json.dumps(make_timeline(predicted.program, spans).to_json()))
    forms = []
    for file in ("good.toml", "measured.json"):
        assert main(["show", file]) == 0
        lines = capsys.readouterr().out.splitlines()
        forms.append([re.sub(r"\d+(\.\d+)?|, 0?\S+ above the lower bound", "#", line) for line in lines[1:]])
    legends = [form.pop(-2) for form in forms]
    assert forms[0] == forms[1]
    assert legends[0].startswith("step # simulated (costs are estimates: times have no unit), ")
    assert legends[1].startswith("step # ms, ")
