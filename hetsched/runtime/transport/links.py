"""Which wires may share a communicator: those of one channel between two lanes.

A communicator's messages go one after the other at each of its ranks, so wires that share one wait for each other. Here
they may: the ranks of a lane run one list, and for each channel the checker holds the order of one lane's SENDs against
that of the other's RECVs. Within a lane a rank sends and receives for the same channel, and were both in one order, two
ranks could each wait to be received from. So those wires are split by the highest bit in which the places
of their ends in the lane differ: in each part a rank only sends or only receives. Wires within a host and wires
between hosts never share a link, as other means carry them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hetsched.runtime.exchange import Wire


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """Wires of one channel that share a communicator; a link is equal to itself alone, which makes it a quick key.

    Args:
        wires: none's source is another's destination.
    """

    wires: tuple[Wire, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of both ends, ascending."""
        return tuple(sorted({rank for wire in self.wires for rank in (wire.source, wire.destination)}))


def make_links(
    wires: Sequence[Wire], lanes: Sequence[Sequence[int]], *, hosts: Sequence[str] | None = None
) -> tuple[Link, ...]:
    """Each wire in one link, in the same order on every rank.

    Args:
        wires: all of the job.
        lanes: the ranks of each lane.
        hosts: of each rank; None where they do not matter.
    """
    at = {rank: (lane, place) for lane, ranks in enumerate(lanes) for place, rank in enumerate(ranks)}
    links: dict[tuple[int | bool, ...], list[Wire]] = defaultdict(list)
    for wire in wires:
        (source, place), (destination, other) = at[wire.source], at[wire.destination]
        # -1 between two lanes, whose ranks are different ones already.
        bit = (place ^ other).bit_length() - 1 if source == destination else -1
        side = place >> bit & 1 if bit >= 0 else 0
        is_near = hosts is None or is_within_host(wire, hosts)
        links[wire.tag, source, destination, bit, side, is_near].append(wire)
    return tuple(Link(tuple(of)) for of in links.values())


def is_within_host(wire: Wire, hosts: Sequence[str]) -> bool:
    """Whether both ends of a wire are on one host.

    Args:
        wire: of a job.
        hosts: of each rank.
    """
    return hosts[wire.source] == hosts[wire.destination]
