"""Programs as JSON, parsed strictly: what does not come from ``program_to_json`` is refused."""

from __future__ import annotations

from typing import Any

from hetsched.errors import ScheduleError
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import parse_action
from hetsched.schedule.program import Program

FORMAT = "hetsched-program-1"


def program_to_json(program: Program) -> dict[str, Any]:
    """The program as JSON values; actions in their text form."""
    topology = program.topology
    return {
        "format": FORMAT,
        "num_microbatches": program.num_microbatches,
        "modules": [
            {
                "name": module.name,
                "stages": [[list(gang) for gang in gangs] for gangs in module.stages],
                "has_backward": module.has_backward,
                "takes_items": module.takes_items,
            }
            for module in topology.modules
        ],
        "edges": [{"producer": e.producer, "consumer": e.consumer, "stage": e.stage} for e in topology.edges],
        "lanes": [[str(action) for action in actions] for actions in program.lanes],
    }


def program_from_json(data: Any) -> Program:
    """The inverse of ``program_to_json``.

    Raises:
        ScheduleError: another format, an unknown or missing key, a wrong type, text that is no action.
    """
    read_format(data, FORMAT)
    fields = read_object(data, "program", format=str, num_microbatches=int, modules=list, edges=list, lanes=list)
    lanes = []
    for number, lane in enumerate(fields["lanes"]):
        texts = read_list(lane, f"lane {number}", str)
        lanes.append(tuple(parse_action(text) for text in texts))
    topology = Topology(
        len(lanes), tuple(map(_read_module, fields["modules"])), tuple(map(_read_edge, fields["edges"]))
    )
    return Program(topology, fields["num_microbatches"], tuple(lanes))


def read_format(data: Any, expected: str) -> None:
    """Refuses what is not an object with ``"format": expected``, before anything else is looked at."""
    found = data.get("format") if isinstance(data, dict) else None
    if found != expected:
        raise ScheduleError(f'not a file of format {expected}: "format" is {found!r}')


def read_object(data: Any, what: str, **fields: type) -> dict[str, Any]:
    """``data`` if it is an object with exactly these keys and types."""
    if not isinstance(data, dict) or set(data) != set(fields):
        keys = sorted(data) if isinstance(data, dict) else data
        raise ScheduleError(f"{what}: expected an object with keys {sorted(fields)}, got {keys!r}")
    for key, kind in fields.items():
        if type(data[key]) is not kind:
            raise ScheduleError(f"{what}: {key} is {data[key]!r}, expected {kind.__name__}")
    return data


def read_list(data: Any, what: str, kind: type) -> list[Any]:
    """``data`` if it is a list of this type."""
    if not isinstance(data, list) or any(type(item) is not kind for item in data):
        raise ScheduleError(f"{what}: expected a list of {kind.__name__}, got {data!r:.80}")
    return data


def _read_module(data: Any) -> ModuleOnLanes:
    fields = read_object(data, "module", name=str, stages=list, has_backward=bool, takes_items=bool)
    name = fields["name"]
    stages = tuple(
        tuple(
            tuple(read_list(gang, f"module {name}: a gang", int)) for gang in read_list(gangs, f"module {name}", list)
        )
        for gangs in fields["stages"]
    )
    return ModuleOnLanes(name, stages, fields["has_backward"], fields["takes_items"])


def _read_edge(data: Any) -> Edge:
    fields = read_object(data, "edge", producer=str, consumer=str, stage=int)
    return Edge(fields["producer"], fields["consumer"], fields["stage"])
