"""What costs may be stated, in which unit times are written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetsched.cli import main
from tests.plan.good_plan import GOOD

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("here")
FLAGS = ["--schedule", "1f1b", "--stages", "4", "--microbatches", "8"]


def write_costs(path: str, **tables: Any) -> str:
    Path(path).write_text(json.dumps({"durations_ns": {"F": 10, "B": 20}} | tables))
    return path


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("F9=5", "--cost F9: there are microbatches 0 to 7"),
        ("llm:B12=99", "--cost llm:B12: there are microbatches 0 to 7"),
        ("llm:7B=9", "--cost llm:7B: llm has stages 0 to 3"),
        ("F@44=3", "--cost F@44: there are lanes 0 to 3"),
        ("llm:1F@3=3", "--cost llm:1F@3: llm:1 runs on lane 1"),
        ("F7=5", None),
        ("llm:3B=9", None),
        ("llm:F@3=3", None),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "show"])
def test_a_cost_of_what_is_not_there_is_refused(command: str, cost: str, said: str | None, capsys: Output) -> None:
    code = main([command, *FLAGS, "--cost", f"F=1,B=2,{cost}"])
    err = capsys.readouterr().err
    assert (code, err) == ((0, "") if said is None else (2, f"hetsched {command}: {said}\n"))


def test_a_cost_of_an_encoder_that_is_not_there_is_named_as_it_was_written(capsys: Output) -> None:
    cost = ["--cost", "F=1,B=2,EF=1,EB=1", "--encoder", "fill"]
    assert main(["simulate", *FLAGS, cost[0], f"{cost[1]},EF8=2", *cost[2:]]) == 2
    assert "--cost EF8: there are microbatches 0 to 7\n" in capsys.readouterr().err
    assert main(["simulate", *FLAGS, cost[0], f"{cost[1]},vision:1F=2", *cost[2:]]) == 2
    assert "--cost vision:1F: vision has stage 0 alone\n" in capsys.readouterr().err


def test_links_that_no_message_takes_are_named_on_stderr(capsys: Output) -> None:
    link = {"latency_ns": 5}
    Path("good.toml").write_text(GOOD)
    write_costs("plan.json", durations_ns={"F": 1, "B": 2}, links={"vison->llm": link, "default": link})
    for argv, names in (
        (["simulate", *FLAGS], "default, llm"),
        (["show", *FLAGS], "default, llm"),
        (["show", "good.toml"], "default, vision, llm, vision->llm"),
    ):
        assert main([*argv, "--cost-file", "plan.json"]) == 0
        assert capsys.readouterr().err == f"plan.json: no message takes links vison->llm; use {names}\n"
    write_costs("fine.json", links={"llm": link, "default": link})
    assert main(["simulate", *FLAGS, "--cost-file", "fine.json"]) == 0
    assert capsys.readouterr().err == ""


def words_of(capsys: Output, *argv: str) -> str:
    assert main([*argv]) == 0
    return capsys.readouterr().out


def test_times_of_a_cost_file_are_written_in_a_unit_that_fits_them(capsys: Output) -> None:
    write_costs("costs.json", durations_ns={"F": 1_234_567, "B": 2_345_678})
    flags = [*FLAGS, "--cost-file", "costs.json"]
    said = words_of(capsys, "simulate", *flags)
    assert "makespan     39.3827 ms\n" in said and "warmup 7.4074 ms," in said
    drawn = words_of(capsys, "show", *flags)
    assert "step 39.3827 ms simulated" in drawn and drawn.splitlines()[0].split() == ["time", "0", "5", *TENS]
    assert json.loads(words_of(capsys, "simulate", *flags, "--json"))["makespan"] == 39_382_695


TENS = ["10", "15", "20", "25", "30", "35"]


def test_large_times_are_written_in_full_and_small_ones_are_not_lost(capsys: Output) -> None:
    large, small = ["--cost", "F=1234567,B=2345678"], ["--cost", "F=0.00003,B=0.00006"]
    assert "makespan     39382695\n" in words_of(capsys, "simulate", *FLAGS, *large)
    assert "20000000 " in words_of(capsys, "show", *FLAGS, *large).splitlines()[0]
    assert "makespan     0.00099\n" in words_of(capsys, "simulate", *FLAGS, *small)


@pytest.mark.parametrize(("items", "makespan", "bubble"), [("3", 33.5, 26), ("6", 33.5, 26), ("7", 33.5, 26)])
def test_items_of_any_number_share_a_cost_exactly(items: str, makespan: float, bubble: int, capsys: Output) -> None:
    flags = [*FLAGS, "--cost", "F=1,B=2,EF=0.5,EB=1", "--encoder", "fill", "--split-items", "--items", items]
    figures = json.loads(words_of(capsys, "simulate", *flags, "--json"))
    assert (figures["makespan"], figures["bubble"]["total"]) == (makespan, bubble)
    assert isinstance(figures["bubble"]["total"], int)
    # What show writes for others is not drawn in thirds of a millisecond.
    timeline = json.loads(words_of(capsys, "show", *flags, "--json"))
    assert max(span[3] for span in timeline["spans"]) == pytest.approx(makespan * 1e6)


def test_show_says_which_costs_it_takes_where_none_are_given(capsys: Output) -> None:
    assert "step 33 simulated (costs F=1,I=1,W=1), idle" in words_of(capsys, "show", *FLAGS)
    assert "step 33 simulated, idle" in words_of(capsys, "show", *FLAGS, "--cost", "F=1,B=2")
    Path("program.csv").write_text("0F0,0B0\n")
    assert "step 3 simulated (costs F=1,I=1,W=1), idle" in words_of(capsys, "show", "program.csv")
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    assert "F=1,I=1,W=1" in capsys.readouterr().out


def test_times_that_nobody_measured_have_no_unit_in_any_format(capsys: Output) -> None:
    Path("good.toml").write_text(GOOD)
    note = "simulated (costs are estimates: times have no unit)"
    for form in ("text", "svg", "html"):
        assert note in words_of(capsys, "show", "good.toml", "--format", form)
    assert " ms" not in words_of(capsys, "show", "good.toml")
    assert ' ms"' not in (picture := words_of(capsys, "show", "good.toml", "--format", "svg")) and " ms," not in picture
    assert '"name":""' in words_of(capsys, "show", "good.toml", "--format", "html").replace(" ", "")
    write_costs("costs.json", durations_ns={"F": 1_000_000, "B": 2_000_000})
    measured = words_of(capsys, "show", "good.toml", "--cost-file", "costs.json")
    assert note not in measured and " ms simulated, idle" in measured


def test_a_measured_step_has_a_unit_whatever_it_is_compared_with(capsys: Output) -> None:
    Path("program.csv").write_text("0F0,0B0\n")
    write_costs("costs.json", durations_ns={"F": 1_000_000, "B": 2_000_000})
    Path("trace.json").write_text(words_of(capsys, "show", "program.csv", "--cost-file", "costs.json", "--json"))
    for costs in (["--cost", "F=5,B=10"], ["--cost-file", "costs.json"], []):
        said = words_of(capsys, "show", "program.csv", *costs, "--measured", "trace.json")
        assert said.count("step 3 ms simulated, idle") == 2


@pytest.mark.parametrize("name", ["f", "Q", "E", "F1x"])
def test_a_kind_that_is_none_is_refused_with_those_there_are(name: str, capsys: Output) -> None:
    assert main(["simulate", *FLAGS, "--cost", f"{name}=1,B=2"]) == 2
    assert capsys.readouterr().err.endswith("kinds are F, B, I, W, OVERLAP_F_B, and EF and EB of an encoder\n")


def test_files_in_each_others_place_are_told_where_they_go(capsys: Output) -> None:
    write_costs("costs.json")
    Path("trace.json").write_text(words_of(capsys, "show", *FLAGS, "--json"))
    Path("empty.json").write_text("\n")
    for argv, said in (
        (["check", "costs.json"], "costs.json: these are costs; give them with --cost-file, beside a plan or"),
        (["show", "costs.json"], "costs.json: these are costs; give them with --cost-file, beside a plan or"),
        (
            ["simulate", *FLAGS, "--cost-file", "trace.json"],
            "trace.json: this is a timeline; `hetsched export FILE --format costs` writes its costs",
        ),
        (["simulate", *FLAGS, "--cost-file", "empty.json"], "empty.json: the file is empty"),
    ):
        assert main(argv) == 1
        assert capsys.readouterr().err.startswith(f"ScheduleError: {said}")
