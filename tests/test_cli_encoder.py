"""``hetsched simulate --encoder``: its flags, its figures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hetsched.cli import main

Output = pytest.CaptureFixture[str]
FLAGS = ["simulate", "--schedule", "1f1b", "--stages", "4", "--microbatches", "8"]
COST = ["--cost", "F=1,B=2,EF=0.5,EB=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


def test_without_an_encoder_there_are_no_figures_of_one(capsys: Output) -> None:
    assert not {"encoder", "encoder_in_flight", "encoder_exposed"} & set(simulated(capsys))


WRONG = {
    "window of fill": (["--encoder", "fill", "--window", "2"], "--window is of --encoder window"),
    "limit of three_phase": (["--encoder", "three_phase", "--in-flight", "2"], "--in-flight is of --encoder fill"),
    "recompute of stage0": (["--encoder", "stage0", "--recompute"], "--recompute is of --encoder fill"),
    "budget of window": (["--encoder", "window", "--budget", "9"], "--budget is of --encoder fill"),
    "items that are whole": (["--encoder", "fill", "--items", "4"], "--items is of --split-items"),
    "items of no encoder": (["--split-items"], "--split-items is of --encoder"),
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
    assert main([*FLAGS, "--cost", "F=1,B=2", "--encoder", "fill"]) == 2
    assert "EF" in capsys.readouterr().err


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
    assert "--window is of --encoder window" in capsys.readouterr().err
    assert main(["show", "plan.toml", "--encoder", "fill"]) == 2
    assert "--encoder is of --schedule" in capsys.readouterr().err
