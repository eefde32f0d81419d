"""Plans from TOML: parse, read strictly, check."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hetsched.config import read_table
from hetsched.errors import PlanError
from hetsched.plan.checks import check_plan
from hetsched.plan.sections import Plan


def load_plan(path: str | Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        PlanError: the file cannot be read, or the plan cannot be run as written; the message names file, field, value
            and fix.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        problem, fix = f"cannot read {path}: {error.strerror}", "give the path of a plan, a TOML file"
        raise PlanError(problem, field="path", fix=fix) from None
    except UnicodeDecodeError as error:
        problem, fix = f"not UTF-8: {error.reason} at byte {error.start}", "save the file as UTF-8"
        raise PlanError(problem, field=f"byte {error.start}", fix=fix, source=str(path)) from None
    return parse_plan(text, source=str(path))


def _syntax_fault(error: Exception) -> tuple[str, str]:
    """What the TOML parser says, and where."""
    if isinstance(error, RecursionError):
        return "nested too deeply", "the whole"
    match = re.fullmatch(r"(.*) \(at (.*)\)", str(error), re.DOTALL)
    return (match[1], match[2]) if match else (str(error), "the whole")


def parse_plan(text: str, *, source: str | None = None) -> Plan:
    """The plan in a TOML text; ``source`` names it in messages. Raises PlanError."""
    try:
        if not text.strip():
            raise PlanError("the file is empty", field="the whole", fix="write a plan; docs/plan.md has its keys")
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            problem, place = _syntax_fault(error)
            raise PlanError(f"not TOML: {problem}", field=place, fix="write a plan as TOML: <key> = <value>") from None
        plan = read_table(Plan, table)
        check_plan(plan)
    except PlanError as error:
        raise PlanError(error.problem, field=error.field, fix=error.fix, source=source) from None
    object.__setattr__(plan, "source", source)
    return plan
