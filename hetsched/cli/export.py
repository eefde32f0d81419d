"""``hetsched export``: a program in another format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import MappingProxyType

from hetsched.cli.output import write
from hetsched.cli.source import FILE_HELP, load_program
from hetsched.exchange.torch_write import program_to_torch_csv
from hetsched.schedule.program import Program
from hetsched.schedule.serialize import program_to_json

HELP = "write a program for torch's pipeline runtime, or as JSON"
EXAMPLES = ("hetsched export program.json --format torch-csv -o program.csv",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    parser.add_argument(
        "--format",
        choices=sorted(WRITERS),
        required=True,
        help="torch-csv: compute actions, for torch's runtime to lower; json: all actions",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="file to write, in place of stdout")


def _to_json(program: Program) -> str:
    return json.dumps(program_to_json(program)) + "\n"


WRITERS = MappingProxyType({"torch-csv": program_to_torch_csv, "json": _to_json})


def run(args: argparse.Namespace) -> int:
    """Check the program and write it."""
    program = load_program(args.file)
    write(WRITERS[args.format](program), args.out)
    return 0
