"""What the actions of a program cost: integer nanoseconds and bytes, from the caller or from a hashed file."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetsched.check.flat import FlatProgram
from hetsched.errors import ScheduleError
from hetsched.schedule.action import KINDS, Action, Kind
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable
from hetsched.sim.timeline import FORMAT as TIMELINE_FORMAT

_NOTHING = ActionTable({})
DEFAULT_LINK = "default"
Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Link:
    """The way of a message between two lanes.

    Args:
        latency_ns: paid by every message.
        bytes_per_s: None if bytes take no time.
    """

    latency_ns: int = 0
    bytes_per_s: int | None = None

    def time_ns(self, num_bytes: int) -> int:
        """Nanoseconds of a message of ``num_bytes``, rounded up."""
        if self.bytes_per_s is None:
            return self.latency_ns
        return self.latency_ns - (-num_bytes * 1_000_000_000 // self.bytes_per_s)


@dataclass(frozen=True)
class Costs:
    """The costs of a job.

    Args:
        durations_ns: of compute actions and collectives. A window costs the sum of its microbatches; B costs I + W
            and OVERLAP_F_B costs F + B where nothing is stated for them; a collective costs nothing where
            nothing is stated. OVERLAP_F_B is looked up by its forward.
        message_bytes: of SEND_F and SEND_B, from one lane to one lane; 0 where nothing is stated.
        held_bytes: of F: what it acquires as it starts, until its B or W ends; 0 where nothing is stated.
        links: by name of the edge, or of the module for its stages' transfers; ``default`` for all others. A
            message of a lane to itself takes no time.
    """

    durations_ns: ActionTable
    message_bytes: ActionTable = _NOTHING
    held_bytes: ActionTable = _NOTHING
    links: Mapping[str, Link] = field(default_factory=dict)

    @classmethod
    def constant(cls, **durations_ns: int) -> Costs:
        """Costs by kind, e.g. ``Costs.constant(F=1000, B=2000)``; transfers cost nothing."""
        return cls(ActionTable.parse(durations_ns))

    @property
    def digest(self) -> str:
        """Equal for equal costs, whatever their order in the file."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def duration_ns(self, action: Action, *, lane: int) -> int:
        """Nanoseconds of one action.

        Raises:
            ScheduleError: nothing is stated for it.
        """
        first = action.parts[0] if action.parts else action
        stated = [
            self.stated_ns(action.kind, first.module, first.stage, microbatch=m, lane=lane)
            for m in first.microbatches or (None,)
        ]
        if None not in stated:
            return sum(filter(None, stated))
        if action.parts:
            return sum(self.duration_ns(part, lane=lane) for part in action.parts)
        raise ScheduleError(f"no cost for {action} on lane {lane}; state one for {action.kind} at least")

    def finder(self) -> Callable[[Action, int], int]:
        """As ``duration_ns`` of an action and a lane, quicker for many: looked up once for those that are alike."""
        known: dict[Hashable, int] = {}
        by_stage = cache(self.durations_ns.is_by_stage)

        def find(action: Action, lane: int) -> int:
            if action.parts or not by_stage(action.module):
                return self.duration_ns(action, lane=lane)
            key = (action.kind, action.module, action.stage, len(action.microbatches))
            if key not in known:
                known[key] = self.duration_ns(action, lane=lane)
            return known[key]

        return find

    def stated_ns(self, kind: Kind, module: str, stage: int, *, microbatch: int | None, lane: int) -> int | None:
        """Nanoseconds of one microbatch, by the rules above, or None."""
        found = self.durations_ns.find(kind, module, stage, microbatch=microbatch, lane=lane)
        if found is None and kind.is_collective:
            return 0
        if found is None and kind is Kind.B:
            halves = [
                self.durations_ns.find(half, module, stage, microbatch=microbatch, lane=lane)
                for half in (Kind.I, Kind.W)
            ]
            return None if None in halves else sum(filter(None, halves))
        return found

    def to_json(self) -> dict[str, Any]:
        """The contents of a cost file."""
        tables = {"durations_ns": self.durations_ns, "message_bytes": self.message_bytes, "held_bytes": self.held_bytes}
        links = {n: {"latency_ns": k.latency_ns, "bytes_per_s": k.bytes_per_s} for n, k in self.links.items()}
        return {key: {str(p): v for p, v in table.values.items()} for key, table in tables.items()} | {"links": links}

    @classmethod
    def from_json(cls, data: Any) -> Costs:
        """The inverse of ``to_json``; only ``durations_ns`` must be there.

        Raises:
            ScheduleError: an unknown key, a pattern that does not parse, a value that is no integer.
        """
        optional = ("message_bytes", "held_bytes", "links")
        has = f"a cost file has durations_ns and, if needed, {', '.join(optional)}"
        if not isinstance(data, dict):
            raise ScheduleError(f"this is no object; {has}")
        if data.get("format") == TIMELINE_FORMAT:
            raise ScheduleError("this is a timeline; `hetsched export FILE --format costs` writes its costs")
        if "durations_ns" not in data:
            raise ScheduleError(f"durations_ns is missing; {has}")
        unknown = [key for key in data if key not in ("durations_ns", *optional)]
        if unknown:
            raise ScheduleError(f"unknown key {unknown[0]!r}; {has}")
        for key, section in data.items():
            if not isinstance(section, dict):
                raise ScheduleError(f"{key} is an object, not {section!r}")
        tables = {key: ActionTable.parse(table) for key, table in data.items() if key != "links"}
        return cls(**tables, links={name: _parse_link(name, link) for name, link in data.get("links", {}).items()})


def load_costs(path: Path) -> Costs:
    """The costs of a JSON file.

    Raises:
        ScheduleError: see ``Costs.from_json``; the message names the file.
    """
    try:
        text = path.read_text()
        if not text.strip():
            raise ScheduleError("the file is empty")
        return Costs.from_json(json.loads(text))
    except OSError as error:
        raise ScheduleError(f"cannot read {path}: {error.strerror}") from error
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ScheduleError(f"{path}: not JSON: {error}") from error


def duration_array(flat: FlatProgram, costs: Costs) -> Int64s:
    """Nanoseconds of every action, in the engine's order; 0 for transfers.

    Raises:
        ScheduleError: nothing is stated for an action.
    """
    result = flat.compiled.durations(_stage_table(flat.program, costs))
    lanes = flat.program.lanes
    # What is not stated by stage alone, or not at all.
    numbers = np.flatnonzero(result < 0)
    of_lane = np.searchsorted(flat.lane_begin, numbers, side="right") - 1
    for number, lane in zip(numbers.tolist(), of_lane.tolist(), strict=True):
        result[number] = costs.duration_ns(lanes[lane][number - flat.lane_begin[lane]], lane=lane)
    return result


def _stage_table(program: Program, costs: Costs) -> Int64s:
    """Nanoseconds of one microbatch by kind, fused pairs last, and stage; -1 where a stage alone does not tell."""
    stages = [(module.name, stage) for module in program.topology.modules for stage in range(module.num_stages)]
    table = np.full((len(KINDS) + 1, len(stages)), -1, np.int64)
    for row, kind in enumerate((*KINDS, Kind.OVERLAP_F_B)):
        if kind.is_transfer:
            continue
        for column, (module, stage) in enumerate(stages):
            if not costs.durations_ns.is_by_stage(module):
                continue
            stated = costs.stated_ns(kind, module, stage, microbatch=None, lane=0)
            table[row, column] = -1 if stated is None else stated
    return table


def message_times(program: Program, costs: Costs) -> Int64s:
    """Nanoseconds of a message by name, direction and microbatch, in the engine's order.

    The sizes of messages are looked up without a lane, and for a module without a stage.
    """
    names = [module.name for module in program.topology.modules] + [edge.name for edge in program.topology.edges]
    result = array("q")
    for name in names:
        link = costs.links.get(name, costs.links.get(DEFAULT_LINK, Link()))
        for kind in (Kind.SEND_F, Kind.SEND_B):
            for m in range(program.num_microbatches):
                size = costs.message_bytes.find(kind, name, 0, microbatch=m, lane=0) or 0
                result.append(link.time_ns(size))
    return np.asarray(result)


def _parse_link(name: str, link: Any) -> Link:
    if not isinstance(link, dict) or not set(link) <= {"latency_ns", "bytes_per_s"}:
        raise ScheduleError(f"link {name}: an object with latency_ns and bytes_per_s, not {link!r}")
    result = Link(link.get("latency_ns", 0), link.get("bytes_per_s"))
    if type(result.latency_ns) is not int or result.latency_ns < 0:
        raise ScheduleError(f"link {name}: latency_ns is an integer of at least 0, not {result.latency_ns!r}")
    if result.bytes_per_s is not None and (type(result.bytes_per_s) is not int or result.bytes_per_s < 1):
        raise ScheduleError(f"link {name}: bytes_per_s is an integer of at least 1, not {result.bytes_per_s!r}")
    return result
