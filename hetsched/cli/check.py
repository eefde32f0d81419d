"""``hetsched check``: whether a plan or a program can be run as written."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hetsched.cli.output import print_json
from hetsched.cli.source import FILE_HELP, load
from hetsched.errors import HetschedError
from hetsched.plan import Plan
from hetsched.plan.words import counted
from hetsched.sim.timeline import Timeline
from hetsched.stepprogram import step_program

_NOUNS = MappingProxyType({"ranks": "rank", "lanes": "lane", "microbatches": "microbatch", "actions": "action"})
HELP = "say whether a plan or a program is sound"
EXAMPLES = (
    "hetsched check examples/digits/colocated.toml",
    "hetsched check program.csv",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    """Check and print; a fault goes to stderr, or with ``--json`` to stdout."""
    try:
        sizes = _sizes(args.file)
    except HetschedError as error:
        if args.json:
            print_json({"sound": False, "error": type(error).__name__, "fault": str(error)})
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if args.json:
        print_json({"sound": True} | sizes)
    else:
        words = ", ".join(counted(sizes[name], noun) for name, noun in _NOUNS.items() if name in sizes)
        print(f"{args.file}: sound; {words}")
    return 0


def _sizes(path: Path) -> dict[str, Any]:
    source = load(path)
    sizes = {}
    if isinstance(source, Plan):
        if None not in (source.model, source.data, source.training):
            # With all that `train` takes, it is to be a plan for that.
            from hetsched.train.demands import check_sections, check_sizes

            check_sections(source)
            check_sizes(source)
        sizes["ranks"] = source.world_size
        program = step_program(source)
    else:
        program = source.program if isinstance(source, Timeline) else source
    return sizes | {
        "lanes": len(program.lanes),
        "microbatches": program.num_microbatches,
        "actions": sum(map(len, program.lanes)),
    }
