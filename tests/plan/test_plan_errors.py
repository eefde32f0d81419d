"""A plan that cannot be run is refused by every command, with file, field, value and fix, before a process starts."""

from __future__ import annotations

import copy
import multiprocessing.process
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.cli import main
from hetsched.config import read_table
from hetsched.errors import PlanError
from hetsched.plan import Plan, load_plan, parse_plan
from hetsched.plan.checks import check_plan
from tests.plan.faults import FAULTS, OF_TRAINING, ONLY_TRAIN
from tests.plan.good_plan import GOOD, spoiled


class Started(Exception):  # noqa: N818  # what happened, not a fault
    """A process was started."""


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "fork", start)


def refusal(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of a plan that it refuses with exit 1 and nothing on stdout."""
    Path("bad.toml").write_text(text)
    assert main([command, "bad.toml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(path.name for path in Path().iterdir()) == ["bad.toml"]
    return err


def check_message(message: str, *, field: str, problem: str, fix: str) -> None:
    first, where, last = message.splitlines()
    assert first.startswith("PlanError: ") and problem in first
    assert where == f"  field {field} in bad.toml"
    assert last.startswith("  fix: ") and fix in last


@pytest.mark.usefixtures("here", "no_process")
@pytest.mark.parametrize(("changes", "field", "problem", "fix"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_every_command_refuses_it(
    changes: list[tuple[str, str]], field: str, problem: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("check", "show", "train"):
        check_message(refusal(command, spoiled(*changes), capsys), field=field, problem=problem, fix=fix)


@pytest.mark.usefixtures("here", "no_process")
@pytest.mark.parametrize(("changes", "field", "problem", "fix"), ONLY_TRAIN, ids=[fault[2] for fault in ONLY_TRAIN])
def test_train_refuses_what_it_cannot_train(
    changes: list[tuple[str, str]], field: str, problem: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_message(refusal("train", spoiled(*changes), capsys), field=field, problem=problem, fix=fix)
    assert main(["check", "bad.toml"]) == 0


@pytest.mark.usefixtures("here", "no_process")
@pytest.mark.parametrize(("changes", "field", "problem", "fix"), OF_TRAINING, ids=[fault[2] for fault in OF_TRAINING])
def test_check_refuses_what_train_refuses_if_the_plan_has_all_that_it_takes(
    changes: list[tuple[str, str]], field: str, problem: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("check", "train"):
        check_message(refusal(command, spoiled(*changes), capsys), field=field, problem=problem, fix=fix)
    assert main(["show", "bad.toml"]) == 0
    Path("bad.toml").write_text(spoiled(*changes, ("[training]\nsteps = 3\n", "")))
    assert main(["check", "bad.toml"]) == 0


@pytest.mark.usefixtures("here", "no_process")
def test_the_plan_that_the_faults_are_made_from_is_fine_and_would_start_processes() -> None:
    Path("good.toml").write_text(GOOD)
    assert main(["check", "good.toml"]) == 0
    with pytest.raises(Started):
        main(["train", "good.toml"])


@pytest.mark.usefixtures("here", "no_process")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "a_file"], "cannot write into a_file: it is a file; give --out a folder"),
        (["--out", "a_file/run"], "cannot make the folder a_file/run: Not a directory; choose another --out"),
        (["--out", "/proc/run"], "cannot make the folder /proc/run: No such file or directory; choose another --out"),
        (["--out", "taken"], "cannot write taken/metrics.jsonl: Is a directory; choose another --out"),
        (["--trace", "taken"], "cannot write taken: Is a directory; choose another --trace"),
        (["--trace", "a_file/trace.json"], "--trace a_file/trace.json: there is no folder a_file"),
    ],
)
def test_train_refuses_files_that_it_could_not_write(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("good.toml").write_text(GOOD)
    Path("a_file").write_text("kept")
    Path("taken/metrics.jsonl").mkdir(parents=True)
    assert main(["train", "good.toml", *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(f"hetsched train: {said}")
    assert Path("a_file").read_text() == "kept"


@pytest.mark.usefixtures("here", "no_process")
def test_what_train_will_write_is_left_as_it_is_until_then() -> None:
    Path("good.toml").write_text(GOOD)
    Path("trace.json").write_text("of another run")
    with pytest.raises(Started):
        main(["train", "good.toml", "--out", "run", "--trace", "trace.json"])
    assert Path("trace.json").read_text() == "of another run"
    assert list(Path("run").iterdir()) == []


@pytest.mark.usefixtures("here")
def test_a_file_that_is_not_utf_8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_bytes(b'name = "\xff"')
    assert main(["check", "bad.toml"]) == 1
    check_message(capsys.readouterr().err, field="byte 8", problem="at byte 8", fix="UTF-8")


@pytest.mark.parametrize(("path", "reason"), [("/nope.toml", "No such file or directory"), ("/", "Is a directory")])
def test_a_plan_that_cannot_be_read_is_a_plan_error_with_its_path(path: str, reason: str) -> None:
    with pytest.raises(PlanError) as refused:
        load_plan(path)
    assert str(refused.value) == (
        f"cannot read {path}: {reason}\n  field path\n  fix: give the path of a plan, a TOML file"
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
TABLE = tomllib.loads(GOOD)


def places(table: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested tables and lists."""
    entries = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from places(value, (*path, key))


@given(st.sampled_from(sorted(places(TABLE), key=str)), VALUES)
def test_any_value_in_any_place_is_read_or_refused_with_a_plan_error(place: tuple[Any, ...], value: object) -> None:
    table = copy.deepcopy(TABLE)
    inner = table
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        plan = read_table(Plan, table)
        check_plan(plan)
    except PlanError:
        return
    assert plan.digest


def test_digests_tell_plans_apart_and_not_files() -> None:
    one, other = parse_plan(GOOD, source="a.toml"), parse_plan(GOOD, source="b.toml")
    assert one.digest == other.digest and hash(one) == hash(other) and one == other
    assert (
        len(
            {
                one.digest,
                *(parse_plan(spoiled((f"ffn = 16\n{end}", f"ffn = 20\n{end}"))).digest for end in ("patch", "vocab")),
            }
        )
        == 3
    )
