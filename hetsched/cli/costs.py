"""Costs from the command line, in any unit, as the integer nanoseconds of the simulator."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hetsched.cli.usage import UsageError
from hetsched.errors import ScheduleError
from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable, Pattern, parse_pattern
from hetsched.show.unit import MILLISECOND, NANOSECOND, Unit
from hetsched.sim.costs import Costs, load_costs

DEFAULT_COST = "F=1,I=1,W=1"
ENCODER = "vision"
"""The module whose costs EF and EB state."""
_OF_ENCODER = re.compile(r"E([FB]\d*)")
_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
# A unit of the user's is drawn as a millisecond by whoever reads the timeline later.
_NS_PER_UNIT = MILLISECOND.ns
_LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class GivenCosts:
    """Costs, and the unit in which they were given and times are printed."""

    costs: Costs
    unit: Unit


def add_cost_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cost`` and ``--cost-file``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--cost",
        metavar="F=1,B=2",
        help="costs of one stage: F, B or I and W, and OVERLAP_F_B if it is less than F + B; "
        "of one stage or microbatch: llm:2F=3, F7=3; EF and EB for a microbatch's encoder work",
    )
    group.add_argument("--cost-file", type=Path, metavar="FILE", help="costs in ns, with links and memory (JSON)")


def read_costs(args: argparse.Namespace, *, default: str | None = None) -> GivenCosts:
    """The costs that the arguments state.

    Raises:
        UsageError: none are stated, or they cannot be read.
        ScheduleError: the cost file is not one.
    """
    if args.cost_file is not None:
        if not args.cost_file.is_file():
            raise UsageError(f"there is no file {args.cost_file}")
        return GivenCosts(load_costs(args.cost_file), NANOSECOND)
    text = default if args.cost is None else args.cost
    if text is None:
        raise UsageError("what do actions cost? Give --cost, e.g. --cost F=1,B=2, or --cost-file")
    return parse_costs(text)


def parse_costs(text: str) -> GivenCosts:
    """The costs of a text such as ``F=0.5,B=1``.

    Raises:
        UsageError: the text is not of that form, names a pattern twice, or its B is not I + W.
    """
    values: dict[Pattern, Fraction] = {}
    for entry in text.split(","):
        name, _, number = entry.strip().partition("=")
        if not _NUMBER.fullmatch(number):
            raise UsageError(f"--cost {entry.strip()!r}: write <kind>=<number of at least 0>, e.g. F=1 or B=2.5")
        pattern = _parse_pattern(name)
        if pattern in values:
            raise UsageError(f"--cost names {name} twice")
        values[pattern] = Fraction(number)
    _check_halves(values)
    scale = math.lcm(_NS_PER_UNIT, *(value.denominator for value in values.values()))
    table = {pattern: int(value * scale) for pattern, value in values.items()}
    return GivenCosts(Costs(ActionTable(table)), Unit(scale))


def require_costs(program: Program, given: GivenCosts) -> None:
    """Refuses costs that leave an action out, or are too large to add up.

    Raises:
        UsageError: see above.
    """
    total, duration_ns = 0, given.costs.finder()
    try:
        for lane, actions in enumerate(program.lanes):
            total += sum(duration_ns(a, lane) for a in actions if not a.kind.is_transfer)
    except ScheduleError as error:
        raise UsageError(f"--cost: {error}") from error
    if total > _LARGEST:
        raise UsageError("--cost: the costs are too large, or have too many decimals, to add up exactly")


def _parse_pattern(name: str) -> Pattern:
    try:
        pattern = parse_pattern(_OF_ENCODER.sub(rf"{ENCODER}:\1", name) if _OF_ENCODER.fullmatch(name) else name)
    except (ScheduleError, ValueError) as error:
        raise UsageError(f"--cost: {error}") from error
    if pattern.kind.is_transfer:
        raise UsageError(f"--cost {name}: transfers cost nothing here; state links in a --cost-file")
    return pattern


def _check_halves(values: dict[Pattern, Fraction]) -> None:
    for pattern, value in values.items():
        halves = [values.get(pattern._replace(kind=kind)) for kind in (Kind.I, Kind.W)]
        if pattern.kind is Kind.B and None not in halves and sum(filter(None, halves)) != value:
            raise UsageError(f"--cost: {pattern} is not the sum of its I and W; leave it out")
