"""``hetsched show``: the lanes of a step over time, simulated or measured."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from hetsched.cli.costs import DEFAULT_COST, add_cost_arguments, read_costs, require_costs, require_known_actions
from hetsched.cli.encoder_flags import (
    add_encoder_arguments,
    encoded_program,
    num_items,
    require_encoders_of_file,
    require_no_encoder_flags,
)
from hetsched.cli.output import write
from hetsched.cli.schedule_flags import add_schedule_arguments, has_schedule, scheduled_program
from hetsched.cli.source import FILE_HELP, Source, load
from hetsched.cli.usage import UsageError, positive
from hetsched.plan import Plan
from hetsched.schedule.program import Program
from hetsched.show.compare import Comparison, compare, scaled
from hetsched.show.html import to_html
from hetsched.show.layer import Layer
from hetsched.show.perfetto import to_perfetto
from hetsched.show.svg import to_svg
from hetsched.show.table import draw_comparison
from hetsched.show.text import draw
from hetsched.show.unit import MILLISECOND, Unit, fitting_unit
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Timeline
from hetsched.stepprogram import step_costs, step_program

HELP = "draw the lanes of a step over time"
EXAMPLES = (
    "hetsched show examples/digits/colocated.toml",
    "hetsched show --schedule 1f1b --stages 4 --microbatches 8 --cost F=1,B=2",
    "hetsched show examples/digits/colocated.toml --measured trace.json --format html -o step.html",
    "hetsched show examples/digits/colocated.toml --cost-file costs.json --measured trace.json",
)
FORMATS = ("text", "svg", "html", "perfetto")
_WIDTH = 120
_LEAST_WIDTH = 20
_MARGIN = 29
"""Columns beside the time axis, of up to 100 lanes."""
_ESTIMATED = "costs are estimates: times have no unit"


@dataclass(frozen=True, slots=True)
class _Step:
    """What is drawn, the unit of its times, and what is said of costs that the user did not give."""

    timeline: Timeline
    unit: Unit
    note: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help=f"{FILE_HELP}, or a timeline (JSON)")
    add_schedule_arguments(parser, required=False)
    add_cost_arguments(parser, default=DEFAULT_COST)
    add_encoder_arguments(parser)
    parser.add_argument("--measured", type=Path, metavar="TRACE", help="a timeline to compare with (JSON)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="text (default), svg, html or perfetto")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="file to write, in place of stdout")
    parser.add_argument("--width", type=positive, metavar="COLUMNS", help="columns of the time axis, as text")
    parser.add_argument("--json", action="store_true", help="print the timeline as JSON, which show reads again")


def run(args: argparse.Namespace) -> int:
    """Draw what a file or the schedule flags name."""
    if (args.file is None) != has_schedule(args):
        raise UsageError("give either a FILE or --schedule, --stages and --microbatches")
    if args.json and (args.format != FORMATS[0] or args.measured is not None):
        raise UsageError("--json is the timeline alone; leave out --format and --measured")
    if args.width is not None and (args.json or args.format != FORMATS[0]):
        raise UsageError("--width is for text; pictures and JSON have no columns")
    if args.file is None and args.encoder is None:
        require_no_encoder_flags(args)
    source = scheduled_program(args) if args.file is None else load(args.file)
    if args.file is not None:
        require_encoders_of_file(args, is_plan=isinstance(source, Plan))
    measured = None if args.measured is None else _measured(args.measured)
    step = _step(args, source, measured)
    timeline, unit = step.timeline, step.unit
    if isinstance(source, Program) and unit.ns > MILLISECOND.ns and (args.json or args.format == "perfetto"):
        # Whoever reads it takes a unit of the user's for a millisecond, also where that had to be cut finer here.
        timeline = scaled(timeline, MILLISECOND.ns / unit.ns)
    if args.json:
        write(json.dumps(timeline.to_json()) + "\n", args.out)
        return 0
    comparison = None
    if measured is not None:
        unit = fitting_unit(measured.makespan_ns)
        # Where nobody measured the costs, only their ratios say something.
        is_scaled = not isinstance(source, Timeline) and args.cost_file is None
        comparison = compare(timeline, measured, unit=unit, is_scaled=is_scaled)
    write(
        _drawn(args, _title(args, source, step.note), replace(step, timeline=timeline, unit=unit), comparison), args.out
    )
    return 0


def _drawn(args: argparse.Namespace, title: str, step: _Step, comparison: Comparison | None) -> str:
    unit = step.unit
    if args.format == "text":
        columns = shutil.get_terminal_size().columns if args.out is None and sys.stdout.isatty() else None
        width = args.width or (_WIDTH if columns is None else max(_LEAST_WIDTH, columns - _MARGIN))
        if comparison is None:
            return draw(step.timeline, width=width, unit=unit, columns=columns, note=step.note) + "\n"
        return draw_comparison(comparison, width=width, unit=unit, columns=columns) + "\n"
    layers = [Layer("step", step.timeline)]
    if comparison is not None:
        layers = [Layer("predicted", comparison.predicted), Layer("measured", comparison.measured)]
    if args.format == "perfetto":
        return to_perfetto(layers, comparison=comparison)
    if args.format == "svg":
        return to_svg(layers, title=title, unit=unit, comparison=comparison)
    return to_html(layers, title=title, unit=unit, comparison=comparison)


def _title(args: argparse.Namespace, source: Source, note: str) -> str:
    if isinstance(source, Timeline):
        return str(args.file.name)
    if isinstance(source, Plan):
        name = f"{source.name}: {source.schedule.pipeline}, encoder {source.schedule.encoder}"
    elif args.file is not None:
        name = str(args.file.name)
    else:
        encoder = "" if args.encoder is None else f", encoder {args.encoder}"
        name = f"{args.schedule}, {args.stages} stages, {args.microbatches} microbatches{encoder}"
    if args.measured:
        return f"{name}, simulated and measured"
    return f"{name}, simulated ({note})" if note else f"{name}, simulated"


def _measured(path: Path) -> Timeline:
    measured = load(path)
    if not isinstance(measured, Timeline):
        raise UsageError(f"--measured {path}: that is no timeline; `hetsched train --trace` writes one")
    return measured


def _step(args: argparse.Namespace, source: Source, measured: Timeline | None) -> _Step:
    if isinstance(source, Timeline):
        if args.cost is not None or args.cost_file is not None:
            raise UsageError(f"{args.file} has times of its own; --cost and --cost-file are for plans and programs")
        return _Step(source, fitting_unit(source.makespan_ns))
    if isinstance(source, Plan):
        predicted = _predicted(args, source, measured)
        unit = fitting_unit(predicted.makespan_ns)
        return _Step(predicted, unit) if args.cost_file else _Step(predicted, Unit(unit.ns), _ESTIMATED)
    given = read_costs(args, default=DEFAULT_COST, num_items=num_items(args))
    require_costs(source, given)
    if args.encoder is None:
        require_known_actions(source, given)
        timeline = simulate(source, given.costs)
    else:
        encoded = encoded_program(args, given)
        require_known_actions(encoded.program, given)
        require_costs(encoded.program, replace(given, costs=encoded.costs))
        timeline = simulate(encoded.program, encoded.costs)
    note = "" if args.cost or args.cost_file else f"costs {DEFAULT_COST}"
    return _Step(timeline, given.unit_of_text(timeline.makespan_ns), note)


def _predicted(args: argparse.Namespace, plan: Plan, measured: Timeline | None) -> Timeline:
    """A step of the plan, by its own costs or those of a file."""
    if args.cost is not None:
        raise UsageError(
            f"{args.file} has costs of its own; --cost is for programs and schedules, a plan takes --cost-file"
        )
    program = step_program(plan)
    if measured is not None and measured.program.topology == program.topology:
        # A step's program may depend on its batch: what is predicted is the step that ran.
        program = measured.program
    if args.cost_file is None:
        return simulate(program, step_costs(plan))
    given = read_costs(args)
    require_costs(program, given)
    require_known_actions(program, given)
    return simulate(program, given.costs)
