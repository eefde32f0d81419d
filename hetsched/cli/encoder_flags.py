"""The flags that put an encoder on the lanes of a schedule."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import pairwise

from hetsched.cli.costs import ENCODER, GivenCosts
from hetsched.cli.schedule_flags import MODULE, schedule_topology
from hetsched.cli.usage import UsageError, positive
from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Kind
from hetsched.schedule.encoder import POLICIES, EncoderLoads, ItemCost, Placement, PlacementOptions, place_encoders
from hetsched.schedule.program import Program
from hetsched.schedule.registry import sink_lanes
from hetsched.schedule.table import ActionTable
from hetsched.sim.costs import Costs

_DEFAULT_WINDOW = 4
_DEFAULT_ITEMS = 16
_OF_PLAN = ("encoder", "window", "in_flight", "recompute", "split_items", "budget")
"""Flags that are keys of a plan's ``[schedule]`` too."""


@dataclass(frozen=True)
class Encoded:
    """A schedule with an encoder.

    Args:
        program: lowered.
        costs: the given ones, and those of each share of the encoder's work.
        placement: what was decided.
    """

    program: Program
    costs: Costs
    placement: Placement


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """``--encoder`` and how it goes about it."""
    group = parser.add_argument_group("encoder", "its work is on every lane; costs EF and EB are a microbatch's, whole")
    group.add_argument("--encoder", choices=POLICIES, help="where the encoder's actions go; none by default")
    group.add_argument("--window", type=positive, metavar="W", help="microbatches of one encoder action (window; 4)")
    group.add_argument(
        "--in-flight", type=positive, metavar="K", help="most microbatches of encoder state at once (fill)"
    )
    group.add_argument(
        "--recompute", action="store_true", help="state may be dropped; the backward then pays the forward again (fill)"
    )
    group.add_argument("--split-items", action="store_true", help="a microbatch's items may go to several lanes")
    group.add_argument(
        "--items", type=positive, metavar="N", help="equal items of a microbatch (with --split-items; 16)"
    )
    group.add_argument(
        "--budget", type=positive, metavar="EVALUATIONS", help="candidate programs to time (fill); by size if left out"
    )


def encoded_program(args: argparse.Namespace, given: GivenCosts) -> Encoded:
    """The schedule that the flags name, with its encoder.

    Raises:
        UsageError: a flag that the policy does not have, or a cost is missing.
    """
    _check_flags(args)
    _require_encoder_costs(given)
    llm, costs = schedule_topology(args), given.costs
    (module,) = llm.modules
    replicas = (tuple((lane,) for lane in range(llm.num_lanes)),)
    topology = Topology(
        llm.num_lanes, (module, ModuleOnLanes(ENCODER, replicas, takes_items=True)), (Edge(ENCODER, MODULE),)
    )
    lanes = sink_lanes(topology, sink=MODULE, pipeline=args.schedule, num_microbatches=args.microbatches)
    try:
        loads = EncoderLoads(costs.finder(), {ENCODER: [_items(args, given, m) for m in range(args.microbatches)]})
    except ScheduleError as error:
        raise UsageError(f"{given.source}: {error}") from error
    placement = place_encoders(
        topology,
        lanes,
        num_microbatches=args.microbatches,
        policy=args.encoder,
        loads=loads,
        options=PlacementOptions(
            window=args.window or _DEFAULT_WINDOW,
            in_flight=args.in_flight,
            recompute=args.recompute,
            split_items=args.split_items,
            budget=args.budget,
        ),
    )
    table = ActionTable({**costs.durations_ns.values, **placement.durations_ns})
    return Encoded(lower_transfers(placement.program), replace(costs, durations_ns=table), placement)


def _check_flags(args: argparse.Namespace) -> None:
    for flag, policy in (("window", "window"), ("in_flight", "fill"), ("recompute", "fill"), ("budget", "fill")):
        if getattr(args, flag) and args.encoder != policy:
            raise UsageError(f"{_flag(flag)} needs --encoder {policy}")
    if args.items is not None and not args.split_items:
        raise UsageError("--items needs --split-items")
    if args.split_items and args.encoder is None:
        raise UsageError("--split-items needs --encoder")


def num_items(args: argparse.Namespace) -> int:
    """The items of a microbatch; 1 if it is not cut."""
    return (args.items or _DEFAULT_ITEMS) if args.split_items else 1


def _items(args: argparse.Namespace, given: GivenCosts, microbatch: int) -> list[ItemCost]:
    count = num_items(args)
    forward, backward = (_encoder_cost(given, kind, microbatch) for kind in (Kind.F, Kind.B))
    if forward == backward == 0:
        return []
    ends = [(i * forward // count, i * backward // count) for i in range(count + 1)]
    return [ItemCost(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]


def _require_encoder_costs(given: GivenCosts) -> None:
    stated = {pattern.kind for pattern in given.costs.durations_ns.values if pattern.module == ENCODER}
    missing = [kind for kind in (Kind.F, Kind.B) if kind not in stated]
    if missing:
        names = " and ".join(_name(kind, given) for kind in missing)
        example = ", e.g. --cost F=1,B=2,EF=0.5,EB=1" if given.file is None else f" in durations_ns of {given.file}"
        raise UsageError(f"--encoder: what does it cost? Give {names}{example}")


def _encoder_cost(given: GivenCosts, kind: Kind, microbatch: int) -> int:
    found = given.costs.durations_ns.find(kind, ENCODER, 0, microbatch=microbatch, lane=0)
    if found is None:
        name = _name(kind, given)
        raise UsageError(f"{given.source}: {name} has no cost for microbatch {microbatch}; state {name}{given.place}")
    return found


def _name(kind: Kind, given: GivenCosts) -> str:
    """The encoder's kind as costs on the command line and those of a file name it."""
    return f"E{kind}" if given.file is None else f"{ENCODER}:{kind}"


def require_no_encoder_flags(args: argparse.Namespace) -> None:
    """Refuses flags of an encoder where there is none."""
    _check_flags(args)


def require_encoders_of_file(args: argparse.Namespace, *, is_plan: bool) -> None:
    """Refuses flags of an encoder where a file says what its encoders do.

    Raises:
        UsageError: see above; of a plan it names the key to write.
    """
    for flag in (*_OF_PLAN, "items"):
        if not getattr(args, flag):
            continue
        fix = f"set schedule.{flag} in {args.file}" if is_plan and flag in _OF_PLAN else "leave it out"
        raise UsageError(f"{_flag(flag)} goes with --schedule, not with a file; {fix}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
