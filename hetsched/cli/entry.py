"""From the command line to a subcommand, and from its errors to an exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hetsched.cli import check, export, show, simulate, train
from hetsched.cli.usage import Parser, ShowVersion, UsageError
from hetsched.errors import HetschedError

COMMANDS = (check, show, simulate, export, train)
INTERRUPTED = 128 + signal.SIGINT
"""As of a command that the shell saw ended by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the command's name; those of the process by default.

    Returns:
        The exit code: 0 fine, 1 a faulty plan or program or a failed job, 2 usage, 130 interrupted.
    """
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.refuse(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        with _without_collector():
            code: int = args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"hetsched {args.command}: {error}", file=sys.stderr)
        return 2
    except HetschedError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted" + ("; all ranks were stopped" if args.run is train.run else ""), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, a pager for one, has seen enough; without this the interpreter complains as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


@contextmanager
def _without_collector() -> Iterator[None]:
    """A command makes millions of actions and no garbage in circles; the collector would look at all of them again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _parser() -> Parser:
    parser = Parser(
        examples=[command.EXAMPLES[0] for command in COMMANDS],
        prog="hetsched",
        description="Train multimodal models in which every module keeps its own parallel layout.",
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        subparser = commands.add_parser(name, examples=command.EXAMPLES, help=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run, refuse=subparser.error)
    return parser
