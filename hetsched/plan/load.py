"""Plans from TOML: parse, read strictly, check."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hetsched.config import read_table
from hetsched.errors import PlanError
from hetsched.plan.checks import check_plan
from hetsched.plan.sections import Plan


def load_plan(path: str | Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        PlanError: the plan cannot be run as written; the message names file, field, value and fix.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problem, fix = f"not UTF-8: {error.reason} at byte {error.start}", "save the file as UTF-8"
        raise PlanError(problem, field="the text", fix=fix, source=str(path)) from None
    return parse_plan(text, source=str(path))


def parse_plan(text: str, *, source: str | None = None) -> Plan:
    """The plan in a TOML text; ``source`` names it in messages. Raises PlanError."""
    try:
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"not TOML: {error}", field="the text", fix="mend the syntax there") from None
        plan = read_table(Plan, table)
        check_plan(plan)
    except PlanError as error:
        raise PlanError(error.problem, field=error.field, fix=error.fix, source=source) from None
    object.__setattr__(plan, "source", source)
    return plan
