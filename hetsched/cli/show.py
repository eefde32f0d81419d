"""``hetsched show``: the lanes of a step over time, simulated or measured."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from hetsched.cli.costs import DEFAULT_COST, add_cost_arguments, read_costs, require_costs
from hetsched.cli.output import print_json
from hetsched.cli.schedule_flags import add_schedule_arguments, has_schedule, scheduled_program
from hetsched.cli.source import FILE_HELP, Source, load
from hetsched.cli.usage import UsageError, positive
from hetsched.estimate import estimate_costs
from hetsched.plan import Plan
from hetsched.show.text import draw
from hetsched.show.unit import Unit
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Timeline
from hetsched.stepplan import step_program

HELP = "draw the lanes of a step over time"
EXAMPLES = (
    "hetsched show examples/digits/colocated.toml",
    "hetsched show --schedule 1f1b --stages 4 --microbatches 8 --cost F=1,B=2",
)
_WIDTH = 120
_MARGIN = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help=f"{FILE_HELP}, or a timeline (JSON)")
    add_schedule_arguments(parser, required=False)
    add_cost_arguments(parser)
    parser.add_argument("--width", type=positive, metavar="COLUMNS", help="columns of the time axis")
    parser.add_argument("--json", action="store_true", help="print the timeline as JSON, which show reads again")


def run(args: argparse.Namespace) -> int:
    """Draw what a file or the schedule flags name."""
    if (args.file is None) != has_schedule(args):
        raise UsageError("give either a FILE or --schedule, --stages and --microbatches")
    timeline, unit = _timeline(args, scheduled_program(args) if args.file is None else load(args.file))
    if args.json:
        print_json(timeline.to_json())
    else:
        print(draw(timeline, width=args.width or _default_width(), unit=unit))
    return 0


def _timeline(args: argparse.Namespace, source: Source) -> tuple[Timeline, Unit | None]:
    is_program = not isinstance(source, Plan | Timeline)
    if not is_program and (args.cost is not None or args.cost_file is not None):
        raise UsageError(f"{args.file} has times of its own; --cost and --cost-file are for programs and schedules")
    if isinstance(source, Timeline):
        return source, None
    if isinstance(source, Plan):
        return simulate(step_program(source), estimate_costs(source)), None
    given = read_costs(args, default=DEFAULT_COST)
    require_costs(source, given)
    return simulate(source, given.costs), given.unit


def _default_width() -> int:
    """What fits the terminal."""
    if not sys.stdout.isatty():
        return _WIDTH
    return max(_WIDTH // 2, shutil.get_terminal_size().columns - _MARGIN)
