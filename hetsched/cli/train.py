"""``hetsched train``: the reference model, from a plan."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hetsched.cli.source import load
from hetsched.cli.usage import UsageError, positive
from hetsched.plan import Plan
from hetsched.show.table import draw_overlap
from hetsched.sim.overlap import Overlap
from hetsched.sim.timeline import Timeline

HELP = "train the reference model on the plan's data"
EXAMPLES = ("hetsched train examples/digits/colocated.toml --steps 200",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("file", type=Path, metavar="PLAN", help="a plan, TOML")
    parser.add_argument("--steps", type=positive, metavar="N", help="stop after N of the plan's steps")
    parser.add_argument("--out", type=Path, help="folder of metrics.jsonl (default: runs/<plan's name>)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="file for the last step as it ran, for `hetsched show`"
    )
    parser.add_argument(
        "--overlap", action="store_true", help="print what the last step hid of its messages; also in overlap.json"
    )
    parser.add_argument("--debug", action="store_true", help="announce every message and compare; slow")


def run(args: argparse.Namespace) -> int:
    """Train and print where the metrics are."""
    plan = load(args.file)
    if not isinstance(plan, Plan):
        what = "timeline" if isinstance(plan, Timeline) else "program"
        raise UsageError(f"{args.file} is a {what}; training takes a plan")
    if args.trace is not None and not args.trace.absolute().parent.is_dir():
        raise UsageError(f"--trace {args.trace}: there is no folder {args.trace.parent}")
    from hetsched.train.run import OVERLAP, UnwritableError, train_plan

    try:
        metrics = train_plan(
            plan,
            stop_after=args.steps,
            out=args.out,
            trace=args.trace,
            with_overlap=args.overlap,
            is_debug=args.debug,
        )
    except UnwritableError as error:
        raise UsageError(str(error)) from error
    print(metrics)
    if args.overlap:
        found = json.loads(metrics.with_name(OVERLAP).read_text())
        print(draw_overlap([Overlap.from_json(each) for each in found]))
        if plan.transport == "gloo":
            print("under way: on CPUs, what nobody had to wait for counts until it was asked for")
    return 0
