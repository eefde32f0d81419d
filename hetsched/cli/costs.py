"""Costs from the command line, in any unit, as the integer nanoseconds of the simulator."""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from hetsched.cli.usage import UsageError, require_file
from hetsched.errors import ScheduleError
from hetsched.plan.words import numbered
from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable, Pattern, parse_pattern
from hetsched.show.unit import MILLISECOND, NANOSECOND, Unit, fitting_unit
from hetsched.sim.costs import DEFAULT_LINK, Costs, load_costs

DEFAULT_COST = "F=1,I=1,W=1"
ENCODER = "vision"
"""The module whose costs EF and EB state."""
_OF_ENCODER = re.compile(r"E([FB]\d*)")
_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
_KINDS = "F, B, I, W, OVERLAP_F_B, and EF and EB of an encoder"
# A unit of the user's is drawn as a millisecond by whoever reads the timeline later.
_NS_PER_UNIT = MILLISECOND.ns
_LARGEST = 2**62


@dataclass(frozen=True, slots=True)
class GivenCosts:
    """Costs, the unit in which they were given, and the file they came from, if any."""

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

    def unit_of_text(self, makespan_ns: int) -> Unit:
        """The unit that a reader meets: the user's own, or of times in a file one that fits them."""
        return self.unit if self.file is None else fitting_unit(makespan_ns)


def add_cost_arguments(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """``--cost``, with the default that its help states, and ``--cost-file``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--cost",
        metavar="F=1,B=2",
        help="costs of one stage: F, B or I and W, and OVERLAP_F_B if it is less than F + B; "
        "of one stage or microbatch: llm:2F=3, F7=3; EF and EB for a microbatch's encoder work"
        + ("" if default is None else f"; without costs {default}, and a plan has estimates"),
    )
    group.add_argument("--cost-file", type=Path, metavar="FILE", help="costs in ns, with links and memory (JSON)")


def read_costs(args: argparse.Namespace, *, default: str | None = None, num_items: int = 1) -> GivenCosts:
    """The costs that the arguments state; those of ``--cost`` can be shared exactly among ``num_items``.

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
    return parse_costs(text, num_items=num_items)


def parse_costs(text: str, *, num_items: int = 1) -> GivenCosts:
    """The costs of a text such as ``F=0.5,B=1``, each a multiple of ``num_items`` in the unit that they are given.

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
    scale = math.lcm(_NS_PER_UNIT, *((value / num_items).denominator for value in values.values()))
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


def require_known_actions(program: Program, given: GivenCosts) -> None:
    """Refuses ``--cost`` of what the program does not have; a file may serve several programs.

    Raises:
        UsageError: see above.
    """
    if given.file is not None:
        _tell_unused_links(program, given)
        return
    for pattern in given.costs.durations_ns.values:
        fault = _unknown_part(program, pattern)
        if fault:
            name = re.sub(rf"^{ENCODER}:(?=[FB]\d*$)", "E", str(pattern))
            is_encoder = pattern.module == ENCODER and ENCODER not in _module_names(program)
            fix = f"; to put it into a --schedule add --encoder, or leave {name} out" if is_encoder else ""
            raise UsageError(f"--cost {name}: {fault}{fix}")


def _tell_unused_links(program: Program, given: GivenCosts) -> None:
    """Says on stderr which links no message takes: of a slip in a name nothing else can be seen."""
    names = [DEFAULT_LINK, *_module_names(program), *(edge.name for edge in program.topology.edges)]
    unused = [name for name in given.costs.links if name not in names]
    if unused:
        said = f"no message takes links {', '.join(unused)}; use {', '.join(names)}"
        print(f"{given.file}: {said}", file=sys.stderr)


def _unknown_part(program: Program, pattern: Pattern) -> str | None:
    """What the program has in place of a pattern's module, stage, microbatch or lane."""
    lanes = range(len(program.lanes))
    if pattern.module is not None:
        if pattern.module not in _module_names(program):
            return f"there is no module {pattern.module}, only {', '.join(_module_names(program))}"
        module = program.topology.module(pattern.module)
        stages = range(module.num_stages)
        if pattern.stage is not None and pattern.stage not in stages:
            return f"{module.name} has {numbered('stage', module.num_stages)}"
        of = stages if pattern.stage is None else (pattern.stage,)
        where = sorted({lane for stage in of for lane in module.lanes(stage)})
        if pattern.lane in lanes and pattern.lane not in where:
            stage = "" if pattern.stage is None else f":{pattern.stage}"
            return f"{module.name}{stage} runs on {'lane' if len(where) == 1 else 'lanes'} {', '.join(map(str, where))}"
    for noun, number, count in (
        ("microbatch", pattern.microbatch, program.num_microbatches),
        ("lane", pattern.lane, len(lanes)),
    ):
        if number is not None and number >= count:
            return f"there {'is' if count == 1 else 'are'} {numbered(noun, count)}"
    return None


def _module_names(program: Program) -> list[str]:
    return [module.name for module in program.topology.modules]


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
        raise UsageError(f"--cost: {error}; kinds are {_KINDS}") from error
    if pattern.kind.is_transfer:
        raise UsageError(f"--cost {name}: transfers cost nothing here; state links in a --cost-file")
    return pattern


def _check_halves(values: dict[Pattern, Fraction]) -> None:
    for pattern, value in values.items():
        halves = [values.get(pattern._replace(kind=kind)) for kind in (Kind.I, Kind.W)]
        if pattern.kind is Kind.B and None not in halves and sum(filter(None, halves)) != value:
            raise UsageError(f"--cost: {pattern} is not the sum of its I and W; leave it out")
