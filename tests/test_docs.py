"""The commands in the documentation print what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hetsched.cli import main
from hetsched.schedule.table import ActionTable
from hetsched.sim.costs import Costs, Link

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.mark.parametrize(("page", "least"), [("docs/schedules.md", 5), ("docs/plan.md", 1), ("README.md", 2)])
def test_every_command_of_a_page_prints_what_it_shows(
    page: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    for name, text in FILES.items():
        Path(name).write_text(text)
    colocated = Path("examples/digits/colocated.toml").read_text()
    Path("colocated.toml").write_text(colocated.replace("pp = 4", "pp = 8"))
    Path("tensor_parallel.toml").write_text(colocated.replace("{ dp = 4 }", "{ tp = 2, dp = 2 }"))
    shown = sessions((ROOT / page).read_text())
    assert len(shown) >= least
    for command, expected in shown:
        main(command.split())
        assert (command, "".join(capsys.readouterr())) == (command, expected)


def test_the_keys_of_a_cost_file_are_documented() -> None:
    page = (ROOT / "docs/schedules.md").read_text()
    table = page[page.index("### A cost file") : page.index("## Encoders in the bubbles")]
    link = Link(latency_ns=1, bytes_per_s=1)
    data = Costs(ActionTable({}), links={"default": link}).to_json()
    assert [
        key for key in (*data, *data["links"]["default"]) if f"`{key}`" not in table and f'"{key}"' not in table
    ] == []
