"""The flags that name a schedule in place of a file."""

from __future__ import annotations

import argparse

from hetsched.cli.usage import UsageError, positive
from hetsched.layout.placement import ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.program import Program
from hetsched.schedule.registry import PIPELINES, training_program

MODULE = "llm"
_DEFAULT_NUM_VIRTUAL = 2


def add_schedule_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--schedule``, ``--stages``, ``--microbatches`` and ``--virtual-stages``."""
    parser.add_argument("--schedule", choices=sorted(PIPELINES), required=required, help="name of the schedule")
    parser.add_argument(
        "--stages",
        type=positive,
        metavar="N",
        required=required,
        help="all stages; lanes = stages / virtual stages",
    )
    parser.add_argument("--microbatches", type=positive, metavar="M", required=required, help="microbatches of a step")
    parser.add_argument(
        "--virtual-stages",
        type=positive,
        metavar="V",
        help="stages on each lane (interleaved: any number, 2 by default; zb-v and dualpipev: 2; others: 1)",
    )


def has_schedule(args: argparse.Namespace) -> bool:
    """Whether any of the flags is given."""
    return any(value is not None for value in (args.schedule, args.stages, args.microbatches, args.virtual_stages))


def scheduled_program(args: argparse.Namespace) -> Program:
    """The lowered program that the flags name.

    Raises:
        UsageError: a flag is missing, or the stages do not fit the schedule.
    """
    for flag in ("schedule", "stages", "microbatches"):
        if getattr(args, flag) is None:
            raise UsageError(f"--{flag} is missing; a schedule takes --schedule, --stages and --microbatches")
    pipeline = PIPELINES[args.schedule]
    num_virtual = _num_virtual(args)
    num_lanes, rest = divmod(args.stages, num_virtual)
    if rest:
        raise UsageError(f"--stages {args.stages} on lanes with {num_virtual} each; give a multiple of {num_virtual}")
    lanes = (pipeline.order.pipeline_rank(stage, pp=num_lanes) for stage in range(args.stages))
    topology = Topology(num_lanes, (ModuleOnLanes(MODULE, tuple(((lane,),) for lane in lanes)),))
    return lower_transfers(
        training_program(
            topology, sink=MODULE, pipeline=args.schedule, encoder="stage0", num_microbatches=args.microbatches
        )
    )


def _num_virtual(args: argparse.Namespace) -> int:
    fixed = PIPELINES[args.schedule].num_virtual
    given: int | None = args.virtual_stages
    if fixed is None:
        return _DEFAULT_NUM_VIRTUAL if given is None else given
    if given not in (None, fixed):
        raise UsageError(
            f"--virtual-stages {given}: {args.schedule} has {fixed} on each lane; interleaved takes any number"
        )
    return fixed
