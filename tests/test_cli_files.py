"""Plans, programs and torch's schedules in files: what `hetsched check` says of them, and what `export` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hetsched.check.validate import validate
from hetsched.cli import main
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.serialize import program_from_json, program_to_json
from tests.plan.good_plan import GOOD
from tests.plan.literal import literal, pipeline

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("here")
SOUND = literal([pipeline([0], [1])], 2, "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
FAULTY_CSV = "0F0,0B0,0B0\n1F0,1B0\n"


SOUND_FILES = {
    "plan.toml": GOOD,
    "program.json": json.dumps(program_to_json(SOUND)),
    "lowered.json": json.dumps(program_to_json(lower_transfers(SOUND))),
    "compute_only.csv": "0F0,0F1,0B0,0B1\r\n1F0,1B0,1F1,1B1\r\n",
    "pairs.csv": "0F0,1F0,,(0F1;1B0)OVERLAP_F_B,0B0,1F1,1B1,0B1\n",
    "compute_comms.csv": "0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0,0REDUCE_GRAD,0RESHARD\n"
    "1RECV_F0,1F0,1B0,1SEND_B0,1REDUCE_GRAD\n",
    "plan": GOOD,
    "program": json.dumps(program_to_json(SOUND)),
    "schedule": "0F0,0B0\n1F0,1B0\n",
}


@pytest.mark.parametrize("name", SOUND_FILES)
def test_check_finds_a_sound_file_sound_whatever_its_kind(name: str, here: Path, capsys: Output) -> None:
    (here / name).write_text(SOUND_FILES[name])
    assert main(["check", name]) == 0
    out, err = capsys.readouterr()
    assert (re.match(rf"{name}: sound; .*lanes?, \d+ microbatch(es)?, \d+ actions\n", out) is not None, err) == (
        True,
        "",
    )
    assert main(["check", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True


HUGE = program_to_json(SOUND) | {"num_microbatches": 10**12}
NO_MODULE = program_to_json(SOUND) | {"lanes": [["vision:0F0", "llm:0F1"], []]}
NO_STAGE = program_to_json(SOUND) | {"lanes": [["llm:7F0", "llm:0F1"], []]}
FAULTY_FILES = {
    "bogus.csv": ("0F0,0BOGUS\n", "row 1, column 2: '0BOGUS'"),
    "letters.csv": ("0F0,0B0\n1F0,1F1x\n", "row 2, column 2: '1F1x'"),
    "minus.csv": ("0F-1,0B0\n", "row 1, column 1: '0F-1'"),
    "twice.csv": (FAULTY_CSV, "llm:0B0 is done twice"),
    "early.csv": ("0F0,0B0\n1B0,1F0\n", "llm:1B0 is a backward before its forward"),
    "circle.csv": ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", "wait"),
    "swapped.csv": (
        "0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1\n1RECV_F1,1RECV_F0,1F0,1F1,1B0,1SEND_B0,1B1,1SEND_B1\n",
        "order",
    ),
    "binary.csv": (b"\xff\xfe0F0", "not text"),
    "empty.csv": ("", "empty"),
    "empty.json": ("", "empty"),
    "empty.toml": ("", "the file is empty"),
    "empty": ("", "empty"),
    "blank.csv": ("\n \n", "empty"),
    "half.json": ('{"format": ', "not JSON"),
    "list.json": ("[]", "format"),
    "other.json": ('{"format": "other-1"}', "hetsched-program-1"),
    "deep.json": ("[" * 100_000, "not JSON"),
    "long.json": ('{"format": "hetsched-program-1", "x": ' + "9" * 5000 + "}", "not JSON"),
    "no_module.json": (json.dumps(NO_MODULE), "vision"),
    "no_stage.json": (json.dumps(NO_STAGE), "llm:7F0"),
    "huge.json": (json.dumps(HUGE), "1000000000000 microbatches"),
    "huge_stage.json": (json.dumps(NO_STAGE).replace("7F0", "99999999999F0"), "llm:99999999999F0"),
    "wrong.toml": ("[modules]\n", "PlanError"),
    "image.svg": ('<svg width="9"/>', "neither a plan (TOML), a program (JSON) nor torch's schedule CSV"),
    "README.md": ("# Title\nsay a = 1\n", "if it is a plan, it is not TOML: Expected '=' after a key"),
    "slip": ("name = 1\nworld_size 4\n", "it is not TOML: Expected '=' after a key in a key/value pair (at line 2"),
}


@pytest.mark.parametrize("name", FAULTY_FILES)
def test_check_shows_the_fault_of_a_faulty_file_and_exits_1(name: str, here: Path, capsys: Output) -> None:
    content, fault = FAULTY_FILES[name]
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["check", name]) == 1
    out, err = capsys.readouterr()
    assert out == "" and fault in err and name in err
    assert main(["check", name, "--json"]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["sound"], err) == (False, "") and fault.replace("PlanError", "field") in answer["fault"]
    for command in (["show", name], ["export", name, "--format", "json"], ["export", name, "--format", "torch-csv"]):
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert out == "" and fault in err


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        ("0F0,0B0\n", "1 lane, 1 microbatch, 2 actions"),
        ("0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1\n", "2 lanes, 2 microbatches, 16 actions"),
    ],
)
def test_check_counts_in_the_right_number(csv: str, said: str, here: Path, capsys: Output) -> None:
    (here / "few.csv").write_text(csv)
    assert main(["check", "few.csv"]) == 0
    assert capsys.readouterr().out == f"few.csv: sound; {said}\n"


def test_a_fault_is_shown_with_its_lanes_and_an_arrow(here: Path, capsys: Output) -> None:
    (here / "twice.csv").write_text(FAULTY_CSV)
    main(["check", "twice.csv"])
    assert capsys.readouterr().err.splitlines() == [
        "ScheduleError: twice.csv: lane 0, action 2: llm:0B0 is done twice: also by llm:0B0 (lane 0, action 1)",
        "lane 0  @2  llm:0F0  llm:0B0  [llm:0B0]  end",
        "                              ^^^^^^^^^ here",
        "lane 1  @2  llm:1F0  llm:1B0  end",
    ]


@pytest.mark.parametrize("name", SOUND_FILES)
def test_export_as_json_gives_the_checked_program(name: str, here: Path, capsys: Output) -> None:
    (here / name).write_text(SOUND_FILES[name])
    assert main(["export", name, "--format", "json", "-o", "out.json"]) == 0
    assert capsys.readouterr().out == ""
    written = (here / "out.json").read_text()
    program = program_from_json(json.loads(written))
    validate(program)
    assert main(["export", "out.json", "--format", "json"]) == 0
    assert capsys.readouterr().out == written


@pytest.mark.parametrize("name", [name for name in SOUND_FILES if "plan" not in name])
def test_export_as_torch_csv_gives_the_compute_actions(name: str, here: Path, capsys: Output) -> None:
    (here / name).write_text(SOUND_FILES[name])
    assert main(["export", name, "--format", "torch-csv"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\r\n") and not re.search("SEND|RECV|SHARD|REDUCE", text)
    (here / "out.csv").write_text(text, newline="")
    assert main(["export", "out.csv", "--format", "torch-csv", "-o", "again.csv"]) == 0
    assert (here / "again.csv").read_bytes() == text.encode()


def test_a_plan_that_torch_cannot_run_is_not_exported_and_says_why(here: Path, capsys: Output) -> None:
    (here / "plan.toml").write_text(GOOD)
    assert main(["export", "plan.toml", "--format", "torch-csv"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ScheduleError: plan.toml: torch knows one chain of stages: ")
    assert "vision:0 runs on lanes [0, 1]" in err and err.endswith("; --format json takes any program\n")
