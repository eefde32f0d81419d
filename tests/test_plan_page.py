"""The page on plan files has every key of the dataclasses that a plan is read into, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hetsched.layout.grid import Layout
from hetsched.plan import Plan, parse_plan
from hetsched.plan.model import LLMConfig, VisionConfig
from hetsched.plan.sections import BoundaryPlan, DataPlan, ModulePlan, SchedulePlan, TrainingPlan
from hetsched.stepprogram import step_program

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "plan.md").read_text()
HEADINGS = {
    Plan: "## The plan",
    ModulePlan: "## `[modules.<name>]`",
    Layout: "## `[modules.<name>.layout]`",
    BoundaryPlan: "## `[[boundaries]]`",
    SchedulePlan: "## `[schedule]`",
    VisionConfig: '### `kind = "vision"`',
    LLMConfig: '### `kind = "decoder"`',
    DataPlan: "## `[data]`",
    TrainingPlan: "## `[training]`",
}
TYPES = {int: "integer", float: "number", str: "string", bool: "true or false"}


def within(hint: Any) -> Iterator[Any]:
    """A type and those that it is made of."""
    yield hint
    if typing.get_origin(hint) is not typing.Literal:
        for part in typing.get_args(hint):
            yield from within(part)


def sections_of(cls: Any) -> Iterator[Any]:
    """The dataclass and all those in its fields."""
    yield cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for part in within(hints[field.name]) if field.init else ():
            if dataclasses.is_dataclass(part):
                yield from sections_of(part)


def table_under(heading: str) -> dict[str, tuple[str, str]]:
    """Key -> type and default, of the first table after a heading."""
    (start,) = (match.end() for match in re.finditer(rf"^{re.escape(heading)}$", PAGE, re.MULTILINE))
    rows: dict[str, tuple[str, str]] = {}
    for line in PAGE[start:].strip().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            assert cells[0] not in rows and len(cells) == 4 and cells[3]
            rows[cells[0].strip("`")] = (cells[1], cells[2])
        elif rows or line.startswith("## "):
            break
    return rows


def default_of(field: dataclasses.Field[Any]) -> str:
    """As the page writes it: in TOML."""
    if field.name == "kind" or (field.default is field.default_factory is dataclasses.MISSING):
        return "-"
    if field.default is None:
        return "none"
    if field.default is dataclasses.MISSING:
        return "`{}`"
    return f"`{json.dumps([] if field.default == () else field.default)}`"


def test_every_section_of_a_plan_has_a_heading() -> None:
    assert set(sections_of(Plan)) == set(HEADINGS)


@pytest.mark.parametrize("section", HEADINGS, ids=lambda section: section.__name__)
def test_every_key_stands_in_its_table_with_type_and_default(section: type) -> None:
    fields = {field.name: field for field in dataclasses.fields(section) if field.init}  # type: ignore[arg-type]
    table, hints = table_under(HEADINGS[section]), typing.get_type_hints(section)
    assert set(table) == set(fields)
    for name, field in fields.items():
        shown, default = table[name]
        assert (name, default) == (name, default_of(field))
        choices = [
            c for part in within(hints[name]) if typing.get_origin(part) is typing.Literal for c in part.__args__
        ]
        if choices:
            assert (name, shown) == (name, ", ".join(f'`"{choice}"`' for choice in choices))
        elif hints[name] in TYPES:
            assert (name, shown) == (name, TYPES[hints[name]])


def test_the_examples_are_complete_and_sound() -> None:
    colocated, apart = (
        parse_plan(text) for text in re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    )
    for plan in (colocated, apart):
        step_program(plan)
    ranks = {plan.name: [set(grid.ranks) for grid in plan.grids.values()] for plan in (colocated, apart)}
    assert ranks == {"colocated": [{0, 1, 2, 3}] * 2, "non_colocated": [{0, 1}, {2, 3, 4, 5}]}
    assert colocated.model is None and apart.training is not None
