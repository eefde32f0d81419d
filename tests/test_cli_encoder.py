"""``hetsched simulate --encoder``: its flags, its figures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetsched.cli import main
from tests.plan.good_plan import GOOD

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("here")
FLAGS = ["simulate", "--schedule", "1f1b", "--stages", "4", "--microbatches", "8"]
COST = ["--cost", "F=1,B=2,EF=0.5,EB=1"]


def simulated(capsys: Output, *flags: str) -> dict[str, Any]:
    assert main([*FLAGS, *COST, *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("policy", "makespan"), [("three_phase", 36), ("stage0", 40.5), ("fill", 34.5)])
def test_figures_of_a_policy(policy: str, makespan: float, capsys: Output) -> None:
    found = simulated(capsys, "--encoder", policy)
    assert found["makespan"] == makespan
    assert found["encoder_exposed"] == makespan - 33


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_than_k_microbatches_are_in_flight(limit: int, capsys: Output) -> None:
    assert simulated(capsys, "--encoder", "fill", "--in-flight", str(limit))["encoder_in_flight"] <= limit


def test_split_items_are_less_exposed_and_more_of_them_still_less(capsys: Output) -> None:
    whole = simulated(capsys, "--encoder", "fill")["encoder_exposed"]
    two, many = (
        simulated(capsys, "--encoder", "fill", "--split-items", "--items", n)["encoder_exposed"] for n in ("2", "16")
    )
    assert whole > two > many == 0.375


def test_recompute_is_quicker_than_to_wait_for_room(capsys: Output) -> None:
    waiting = simulated(capsys, "--encoder", "fill", "--in-flight", "1")
    again = simulated(capsys, "--encoder", "fill", "--in-flight", "1", "--recompute")
    assert again["makespan"] < waiting["makespan"] and again["encoder_in_flight"] <= 1


def test_the_words_name_the_policy_and_what_it_holds(capsys: Output) -> None:
    assert main([*FLAGS, *COST, "--encoder", "fill"]) == 0
    assert "fill: 1.5 exposed" in capsys.readouterr().out


def test_the_words_say_what_is_recomputed_and_what_the_bound_leaves_out(capsys: Output) -> None:
    again = [*FLAGS, *COST, "--encoder", "fill", "--in-flight", "1", "--recompute"]
    assert main(again) == 0
    lines = capsys.readouterr().out.splitlines()
    recomputed = simulated(capsys, *again[len(FLAGS) + len(COST) :])["encoder_recomputed"]
    assert recomputed and lines[-1].endswith(f" in flight at most, {recomputed} recomputed")
    assert lines[2].startswith("lower bound  35, gap ") and lines[2].endswith("% (without --in-flight)")
    assert main([*FLAGS, *COST, "--encoder", "fill"]) == 0
    words = capsys.readouterr().out
    assert "recomputed" not in words and "--in-flight" not in words


def test_without_an_encoder_there_are_no_figures_of_one(capsys: Output) -> None:
    assert main([*FLAGS, "--cost", "F=1,B=2", "--json"]) == 0
    assert not {"encoder", "encoder_in_flight", "encoder_exposed"} & set(json.loads(capsys.readouterr().out))


WRONG = {
    "window of fill": (["--encoder", "fill", "--window", "2"], "--window needs --encoder window"),
    "limit of three_phase": (["--encoder", "three_phase", "--in-flight", "2"], "--in-flight needs --encoder fill"),
    "recompute of stage0": (["--encoder", "stage0", "--recompute"], "--recompute needs --encoder fill"),
    "budget of window": (["--encoder", "window", "--budget", "9"], "--budget needs --encoder fill"),
    "items that are whole": (["--encoder", "fill", "--items", "4"], "--items needs --split-items"),
    "items of no encoder": (["--split-items"], "--split-items needs --encoder"),
    "no such policy": (["--encoder", "best"], "best"),
    "no state": (["--encoder", "fill", "--in-flight", "0"], "0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_flags_that_do_not_go_together_get_one_line_and_exit_2(case: str, capsys: Output) -> None:
    flags, said = WRONG[case]
    try:
        code: object = main([*FLAGS, *COST, *flags])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


def test_an_encoder_without_costs_is_refused_with_an_example(capsys: Output) -> None:
    for cost, missing in (("F=1,B=2", "EF and EB"), ("F=1,B=2,EF=1", "EB"), ("F=1,B=2,EB=1", "EF")):
        assert main([*FLAGS, "--cost", cost, "--encoder", "fill"]) == 2
        assert f"what does it cost? Give {missing}, e.g. --cost F=1" in capsys.readouterr().err
    assert main([*FLAGS, "--cost", "llm:F=1,llm:B=2,EF3=1,EB=1", "--encoder", "fill"]) == 2
    assert "--cost: EF has no cost for microbatch 0; state EF\n" in capsys.readouterr().err


def test_show_puts_an_encoder_into_the_bubbles(capsys: Output) -> None:
    schedule = ["show", "--schedule", "1f1b", "--stages", "2", "--microbatches", "2", "--width", "36"]
    assert main([*schedule, "--encoder", "three_phase", "--cost", "F=1,B=2,EF=1,EB=1"]) == 0
    drawn = capsys.readouterr().out
    assert "v is vision" in drawn
    assert "step 11 simulated," in drawn
    assert main([*schedule, "--encoder", "fill", "--split-items", "--cost", "F=1,B=2,EF=1,EB=1"]) == 0
    assert "step 10 simulated," in capsys.readouterr().out
    assert main([*schedule, "--encoder", "fill"]) == 2
    assert "what does it cost" in capsys.readouterr().err
    assert main([*schedule, "--window", "2"]) == 2
    assert "--window needs --encoder window" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "of_plan"),
    [
        (["--encoder", "fill"], "--encoder goes with --schedule, not with a file; set schedule.encoder in plan.toml"),
        (
            ["--in-flight", "2"],
            "--in-flight goes with --schedule, not with a file; set schedule.in_flight in plan.toml",
        ),
        (["--split-items", "--items", "4"], "; set schedule.split_items in plan.toml"),
        (["--items", "4"], "--items goes with --schedule, not with a file; leave it out"),
    ],
)
def test_flags_of_an_encoder_are_refused_for_a_file_and_a_plan_says_where_else(
    flags: list[str], of_plan: str, here: Path, capsys: Output
) -> None:
    (here / "plan.toml").write_text(GOOD)
    (here / "program.csv").write_text("0F0,0B0\n1F0,1B0\n")
    for file, said in (("plan.toml", of_plan), ("program.csv", "; leave it out")):
        assert main(["show", file, *flags]) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["simulate", "show"])
def test_costs_of_an_encoder_that_is_not_there_are_refused(command: str, capsys: Output) -> None:
    for cost in ("F=1,B=2,EF=9,EB=9", "F=1,B=2,EF=9", "F=1,B=2,EF3=9"):
        assert main([command, *FLAGS[1:], "--cost", cost]) == 2
        name = "EF3" if "3" in cost else "EF"
        said = (
            f"--cost {name}: there is no module vision, only llm; to put it into a --schedule add --encoder, or leave"
        )
        assert f"{said} {name} out" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--encoder", "fill"]])
@pytest.mark.parametrize("command", ["simulate", "show"])
def test_costs_of_an_unknown_module_are_refused(command: str, flags: list[str], capsys: Output) -> None:
    assert main([command, *FLAGS[1:], "--cost", "F=1,B=2,EF=1,EB=1,lm:F=3", *flags]) == 2
    err = capsys.readouterr().err
    assert ("--cost lm:F: there is no module lm, only llm, vision" if flags else "--cost EF: there is no module") in err


def test_a_cost_file_may_state_an_encoder_that_is_not_there(here: Path, capsys: Output) -> None:
    (here / "costs.json").write_text('{"durations_ns": {"F": 1, "B": 2, "vision:F": 3}}')
    assert main([*FLAGS, "--cost-file", "costs.json"]) == 0
    assert main([*FLAGS, "--cost-file", "costs.json", "--encoder", "fill"]) == 2
    assert "what does it cost? Give vision:B in durations_ns of costs.json" in capsys.readouterr().err
