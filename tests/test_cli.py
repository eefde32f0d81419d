"""The command line: usage errors are one line and exit 2, help opens with examples, deciding needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import pytest

from hetsched.cli import main
from tests.plan.good_plan import GOOD

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from hetsched.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return str(path)


def usage_error(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command line gets, with exit 2."""
    try:
        code: object = main(argv)
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["chek", "PLAN"], ["'chek'", "check", "show", "simulate", "export", "train"]),
        ([], ["COMMAND"]),
        (["--fast", "check", "PLAN"], ["--fast"]),
        (["check"], ["hetsched check:", "FILE"]),
        (["train"], ["hetsched train:", "PLAN"]),
        (["check", "PLAN", "--fast"], ["--fast"]),
        (["show", "PLAN", "PLAN"], ["good.toml", "see hetsched show --help"]),
        (["train", "PLAN", "--fast"], ["--fast"]),
        (["train", "PLAN", "--steps"], ["--steps"]),
        (["train", "PLAN", "--steps", "few"], ["--steps", "'few' is not a number of at least 1"]),
        (["train", "PLAN", "--steps", "0"], ["--steps", "'0' is not a number of at least 1"]),
        (["train", "PLAN", "--steps", "-1"], ["--steps", "'-1' is not a number of at least 1"]),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_gets_one_line_and_exit_2(
    argv: list[str], said: list[str], plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = usage_error(*(plan if word == "PLAN" else word for word in argv), capsys=capsys)
    assert line.startswith("hetsched") and "--help" in line
    assert [word for word in said if word not in line] == []


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"hetsched {version('hetsched')}\n"


@pytest.mark.parametrize("command", ["check", "show", "train"])
def test_a_missing_file_gets_one_line_and_exit_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(command, "no.toml", capsys=capsys) == f"hetsched {command}: there is no file no.toml"
    assert usage_error(command, ".", capsys=capsys) == f"hetsched {command}: . is a folder; name a file in it"


@pytest.mark.parametrize(
    "argv",
    [["--help"], *([command, "--help"] for command in ("check", "show", "simulate", "export")), ["train", "-h"]],
    ids=" ".join,
)
def test_help_opens_with_examples_that_are_themselves_right(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(argv)
    title, *lines = capsys.readouterr().out.splitlines()
    examples = lines[: lines.index("")]
    assert title == "examples:" and examples and lines[len(examples) + 1].startswith("usage: hetsched")
    monkeypatch.chdir(tmp_path)
    for example in examples:
        _, *words = example.split()
        if words[1].startswith("--"):
            assert main(words) == 0 and capsys.readouterr().out
        else:
            # Parsed as far as the file, which is not here.
            assert usage_error(*words, capsys=capsys) == f"hetsched {words[0]}: there is no file {words[1]}"


def run_without_torch(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_check_and_show_work_without_torch(plan: str) -> None:
    checked, shown = run_without_torch("check", plan), run_without_torch("show", plan)
    assert (checked.returncode, checked.stderr) == (shown.returncode, shown.stderr) == (0, "")
    assert checked.stdout.startswith(f"{plan}: sound; 4 ranks, 2 lanes, ")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["time", "lane", "lane", "step", "key:"]


def test_train_does_need_torch(plan: str) -> None:
    trained = run_without_torch("train", plan)
    assert trained.returncode != 0 and "torch" in trained.stderr


@pytest.mark.parametrize(
    ("command", "said"), [("check", "interrupted"), ("train", "interrupted; all ranks were stopped")]
)
def test_an_interrupted_command_says_so_and_exits_as_shells_expect(
    command: str, said: str, plan: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"hetsched.cli.{command}.load", Mock(side_effect=KeyboardInterrupt))
    assert main([command, plan]) == 130
    assert capsys.readouterr().err == f"{said}\n"


def test_the_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hetsched.cli", "check", str(tmp_path / "missing.toml")]
    assert subprocess.run(command, capture_output=True, check=False, cwd=ROOT).returncode == 2
