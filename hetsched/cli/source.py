"""The files that the commands read: a plan, a program, a torch CSV or a timeline, told apart by name or contents."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from hetsched.check.explain import explain
from hetsched.check.flat import Fault, flatten
from hetsched.check.validate import check, validate
from hetsched.cli.usage import UsageError, require_file
from hetsched.errors import ScheduleError
from hetsched.exchange.torch_read import program_from_torch_csv
from hetsched.lower.transfers import lower_transfers
from hetsched.plan import Plan, load_plan
from hetsched.plan.words import counted
from hetsched.schedule.program import Program
from hetsched.schedule.serialize import program_from_json
from hetsched.sim.timeline import FORMAT as TIMELINE_FORMAT
from hetsched.sim.timeline import Timeline
from hetsched.stepprogram import step_program

FILE_HELP = "a plan (TOML), a program (JSON) or torch's schedule CSV"

Source = Plan | Program | Timeline


def load(path: Path) -> Source:
    """What a file holds; a program is complete and sound.

    Args:
        path: its suffix says what it is to be (.toml, .json, .csv), its contents if it has another.

    Raises:
        UsageError: there is no such file, or it is a folder.
        PlanError: the plan cannot be run as written.
        ScheduleError: the file is empty, is none of these, or its program is not sound.
    """
    require_file(path)
    kind = path.suffix.lower().removeprefix(".")
    text = "" if kind == "toml" else _read(path)
    if kind not in ("toml", "json", "csv"):
        kind = _guess(text)
        if kind == "toml":
            _require_toml(path, text)
    if kind == "toml":
        return load_plan(path)
    try:
        if kind == "csv":
            return complete(program_from_torch_csv(text))
        data = json.loads(text)
        if isinstance(data, dict) and data.get("format") == TIMELINE_FORMAT:
            timeline = Timeline.from_json(data)
            check(timeline.program)
            return timeline
        if isinstance(data, dict) and "durations_ns" in data:
            raise ScheduleError("these are costs; give them with --cost-file, beside a plan or a schedule")
        return complete(program_from_json(data))
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"{path}: not JSON: {error}") from error


def load_program(path: Path) -> Program:
    """The lowered and checked program of a file of any kind; see ``load``."""
    source = load(path)
    if isinstance(source, Plan):
        return step_program(source)
    return source.program if isinstance(source, Timeline) else source


def complete(program: Program) -> Program:
    """The program with its transfers, which may be left out altogether, and checked.

    Raises:
        ScheduleError: it is not sound.
    """
    if program.num_microbatches > sum(map(len, program.lanes)):
        raise ScheduleError(f"{counted(program.num_microbatches, 'microbatch')}, but there are fewer actions")
    kinds = {action.kind for lane in program.lanes for action in lane}
    if not any(kind.is_transfer for kind in kinds):
        # Lowering takes names and numbers as they are. A missing transfer is the one fault it mends.
        fault = flatten(program)
        if isinstance(fault, Fault) and not (fault.wanted is not None and fault.wanted.kind.is_transfer):
            raise ScheduleError(explain(program, fault))
        program = lower_transfers(program)
    validate(program)
    return program


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScheduleError(f"{path}: not text: {error}") from error
    if not text.strip():
        raise ScheduleError(f"{path}: the file is empty")
    return text


def _require_toml(path: Path, text: str) -> None:
    """Refuses a file that only its contents make a plan, and that is none, without the words for a plan with a slip."""
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        kinds = "neither a plan (TOML), a program (JSON) nor torch's schedule CSV"
        raise ScheduleError(f"{path}: {kinds}; if it is a plan, it is not TOML: {error}") from error


def _guess(text: str) -> str:
    if text.lstrip().startswith("{"):
        return "json"
    return "toml" if "=" in text else "csv"
