"""The commands in the documentation print what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetsched.cli import main

DOCS = Path(__file__).resolve().parent.parent / "docs"
INDENT = "    "
PROMPT = f"{INDENT}$ hetsched "
FILES = {
    "circle.csv": "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n",
    "bogus.csv": "0F0,0B0\n1F0,1BOGUS\n",
}


def sessions(text: str) -> list[tuple[str, str]]:
    """Commands and the lines that follow each, as far as they are indented."""
    found: list[tuple[str, str]] = []
    is_output = False
    for line in text.splitlines():
        if line.startswith(PROMPT):
            found.append((line.removeprefix(PROMPT), ""))
            is_output = True
        elif is_output and line.startswith(INDENT):
            command, output = found[-1]
            found[-1] = (command, output + line.removeprefix(INDENT) + "\n")
        else:
            is_output = False
    return found


def test_every_command_of_the_page_on_schedules_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    shown = sessions((DOCS / "schedules.md").read_text())
    assert len(shown) >= 5
    for command, expected in shown:
        main(command.split())
        assert (command, "".join(capsys.readouterr())) == (command, expected)
