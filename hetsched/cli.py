"""The ``hetsched`` command. What only decides never imports torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hetsched.errors import HetschedError
from hetsched.plan import load_plan

EXAMPLES = """\
examples:
  hetsched check examples/digits/colocated.toml
  hetsched show examples/digits/colocated.toml
  hetsched train examples/digits/colocated.toml --steps 200
"""


class _Parser(argparse.ArgumentParser):
    """Usage errors are one line and exit 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 fine, 1 invalid plan or failed job, 2 usage."""
    args = _parser().parse_args(argv)
    if not args.file.is_file():
        print(f"hetsched {args.command}: there is no file {args.file}", file=sys.stderr)
        return 2
    try:
        code: int = args.run(args)
    except HetschedError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; all ranks were stopped", file=sys.stderr)
        return 1
    return code


def _parser() -> _Parser:
    parser = _Parser(
        prog="hetsched",
        description="Train multimodal models in which every module keeps its own parallel layout.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    check = commands.add_parser("check", help="say whether a plan can be run as written")
    check.set_defaults(run=_check)
    show = commands.add_parser("show", help="draw the lanes of a plan's step over time")
    show.set_defaults(run=_show)
    train = commands.add_parser("train", help="train the reference model on the plan's data")
    train.add_argument("--steps", type=_positive, metavar="N", help="stop after N of the plan's steps")
    train.add_argument("--out", type=Path, help="folder of metrics.jsonl (default: runs/<plan's name>)")
    train.set_defaults(run=_train)
    for command in (check, show, train):
        command.add_argument("file", type=Path, metavar="PLAN", help="a plan, TOML")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _check(args: argparse.Namespace) -> int:
    from hetsched.stepplan import step_program

    plan = load_plan(args.file)
    program = step_program(plan)
    num_actions = sum(len(lane) for lane in program.lanes)
    print(f"{args.file}: sound; {plan.world_size} ranks, {len(program.lanes)} lanes, {num_actions} actions a step")
    return 0


def _show(args: argparse.Namespace) -> int:
    from hetsched.estimate import estimate_costs
    from hetsched.show.text import draw
    from hetsched.sim.simulate import simulate
    from hetsched.stepplan import step_program

    plan = load_plan(args.file)
    program = step_program(plan)
    print(draw(simulate(program, estimate_costs(plan))))
    return 0


def _train(args: argparse.Namespace) -> int:
    plan = load_plan(args.file)
    from hetsched.train.run import train_plan

    print(train_plan(plan, stop_after=args.steps, out=args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
