"""``hetsched export``: a program in another format, or what the actions of a measured step cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import MappingProxyType

from hetsched.cli.output import write
from hetsched.cli.source import FILE_HELP, load, load_program
from hetsched.cli.usage import UsageError
from hetsched.errors import ScheduleError
from hetsched.exchange.torch_write import program_to_torch_csv
from hetsched.schedule.program import Program
from hetsched.schedule.serialize import program_to_json
from hetsched.sim.costs import Costs
from hetsched.sim.measured import measured_costs
from hetsched.sim.timeline import Timeline

HELP = "write a program for torch's pipeline runtime or as JSON, or a trace's costs"
EXAMPLES = (
    "hetsched export program.json --format torch-csv -o program.csv",
    "hetsched export trace.json --format costs -o costs.json",
)
COSTS = "costs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, metavar="FILE", help=f"{FILE_HELP}, or a timeline (JSON)")
    parser.add_argument(
        "--format",
        choices=sorted([COSTS, *WRITERS]),
        required=True,
        help="torch-csv: compute actions, for torch's runtime to lower; json: all actions; "
        "costs: of a measured timeline, what --cost-file takes",
    )
    parser.add_argument("--by-microbatch", action="store_true", help="costs that tell microbatches apart")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="file to write, in place of stdout")


def _to_json(program: Program) -> str:
    return json.dumps(program_to_json(program)) + "\n"


WRITERS = MappingProxyType({"torch-csv": program_to_torch_csv, "json": _to_json})


def run(args: argparse.Namespace) -> int:
    """Check the program and write it."""
    if args.format == COSTS:
        write(json.dumps(_costs(args).to_json(), indent=1) + "\n", args.out)
        return 0
    if args.by_microbatch:
        raise UsageError("--by-microbatch needs --format costs")
    program = load_program(args.file)
    try:
        text = WRITERS[args.format](program)
    except ScheduleError as error:
        fix = "--format json takes any program"
        raise ScheduleError(f"{args.file}: torch knows one chain of stages: {error}; {fix}") from error
    write(text, args.out)
    return 0


def _costs(args: argparse.Namespace) -> Costs:
    source = load(args.file)
    if not isinstance(source, Timeline):
        raise UsageError(
            f"{args.file}: that is no timeline; `hetsched train --trace` writes one, whose costs these are"
        )
    return measured_costs([source], by_microbatch=args.by_microbatch)
