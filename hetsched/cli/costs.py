"""Costs from the command line, in any unit, as the integer nanoseconds of the simulator."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hetsched.cli.usage import UsageError, require_file
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
    """Costs, the unit in which they were given and times are printed, and the file they came from, if any."""

    costs: Costs
    unit: Unit
    file: Path | None = None

    @property
    def source(self) -> str:
        """Where the user finds them, for messages."""
        return "--cost" if self.file is None else str(self.file)

    @property
    def place(self) -> str:
        """Where further costs go."""
        return "" if self.file is None else " in its durations_ns"


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
        require_file(args.cost_file)
        return GivenCosts(load_costs(args.cost_file), NANOSECOND, args.cost_file)
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
        UsageError: see above; all kinds that are missing are named.
    """
    total, duration_ns = 0, given.costs.finder()
    try:
        for lane, actions in enumerate(program.lanes):
            total += sum(duration_ns(a, lane) for a in actions if not a.kind.is_transfer)
    except ScheduleError as error:
        raise UsageError(f"{given.source}: {_missing(program, given.costs)}{given.place}") from error
    if total > _LARGEST:
        raise UsageError(f"{given.source}: the costs are too large, or have too many decimals, to add up exactly")


def require_known_modules(program: Program, given: GivenCosts) -> None:
    """Refuses ``--cost`` of a module that is not there; a file may serve several programs.

    Raises:
        UsageError: see above.
    """
    modules = [module.name for module in program.topology.modules]
    for pattern in given.costs.durations_ns.values if given.file is None else ():
        if pattern.module is not None and pattern.module not in modules:
            name = re.sub(rf"^{ENCODER}:(?=[FB]\d*$)", "E", str(pattern))
            fix = (
                f"; to put it into a --schedule add --encoder, or leave {name} out" if pattern.module == ENCODER else ""
            )
            there = f"there is no module {pattern.module}, only {', '.join(modules)}"
            raise UsageError(f"--cost {name}: {there}{fix}")


def _missing(program: Program, costs: Costs) -> str:
    """The first action without a cost, and all that has to be stated."""
    missing: dict[tuple[Kind, str], str] = {}
    duration_ns = costs.finder()
    for lane, actions in enumerate(program.lanes):
        for part in (part for action in actions for part in action.parts or (action,)):
            if part.kind.is_transfer or (part.kind, part.module) in missing:
                continue
            try:
                duration_ns(part, lane)
            except ScheduleError:
                missing[part.kind, part.module] = f"{part} on lane {lane}"
    is_alone = len(program.topology.modules) == 1
    # Where I and W are stated, B is their sum.
    needed = [(kind, name) for kind, name in missing if kind is not Kind.B or (Kind.I, name) not in missing]
    patterns = [Pattern(kind, None if is_alone else name) for kind, name in needed]
    return f"no cost for {next(iter(missing.values()))}; state {', '.join(map(str, patterns))}"


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
