"""How much of a step's communication was hidden behind work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Flight(NamedTuple):
    """What one rank received together.

    Args:
        num_bytes: of it.
        under_way_ns: from when all of it could leave until it had arrived.
        exposed_ns: the part of that for which the rank waited and did nothing else.
    """

    num_bytes: int
    under_way_ns: int
    exposed_ns: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """The messages of one direction of an edge, or of one module's context parallelism, over all ranks of a step.

    Args:
        name: of the channel, or ``<module>, context``.
        num_messages, num_bytes: of all ranks.
        under_way_ns: added up over messages. Where nobody sees a message arrive before asking for it (on CPUs), a
            message that need not be waited for counts as under way until it was asked for.
        exposed_ns: the part of it in which the receiving rank waited, and did nothing else.
    """

    name: str
    num_messages: int
    num_bytes: int
    under_way_ns: int
    exposed_ns: int

    @property
    def hidden(self) -> float:
        """The share of the time under way that did not hold its rank up; 1 where nothing was under way."""
        return 1 - self.exposed_ns / self.under_way_ns if self.under_way_ns else 1.0

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {**asdict(self), "hidden": self.hidden}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Overlap:
        """The inverse of ``to_json``."""
        return cls(**{key: value for key, value in data.items() if key != "hidden"})


def overlap(name: str, flights: Iterable[Flight]) -> Overlap:
    """What the messages of one name add up to."""
    every = list(flights)
    columns = (sum(column) for column in zip(*every, strict=True)) if every else (0, 0, 0)
    return Overlap(name, len(every), *columns)
