"""From the command line to a subcommand, and from its errors to an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hetsched.cli import check, export, show, simulate, train
from hetsched.cli.usage import Parser, UsageError
from hetsched.errors import HetschedError

EXAMPLES = """\
examples:
  hetsched simulate --schedule 1f1b --stages 4 --microbatches 8 --cost F=1,B=2
  hetsched check examples/digits/colocated.toml
  hetsched show --schedule zb-h1 --stages 4 --microbatches 8 --cost F=1,I=1,W=1
  hetsched export program.json --format torch-csv -o program.csv
  hetsched train examples/digits/colocated.toml --steps 200
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the command's name; those of the process by default.

    Returns:
        The exit code: 0 fine, 1 a faulty plan or program or a failed job, 2 usage.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"hetsched {args.command}: {error}; see hetsched {args.command} --help", file=sys.stderr)
        return 2
    except HetschedError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; all ranks were stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, a pager for one, has seen enough; without this the interpreter complains as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="hetsched",
        description="Train multimodal models in which every module keeps its own parallel layout.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (check, show, simulate, export, train):
        name = command.__name__.rpartition(".")[2]
        subparser = commands.add_parser(
            name,
            help=command.HELP,
            description=command.EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
