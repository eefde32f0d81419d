"""The ranks' messages of a step held against each other: what was under way, and who waited for it.

A message is under way from when its rows were there on the sending rank: what the receiver waited before that was
for the work that makes them, not for the message.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hetsched.runtime.measure.context_meter import Passed
from hetsched.runtime.measure.metered import Received, Traffic
from hetsched.runtime.measure.trace import SHORTEST_WAIT_NS
from hetsched.sim.overlap import Flight, Overlap, overlap


@dataclass(frozen=True)
class RankTraffic:
    """The messages of one rank in a step.

    Args:
        began_ns: when its step began, on a clock that all ranks of a host share.
        traffic: between stages.
        context: by module, of its context parallelism.
    """

    began_ns: int
    traffic: Traffic
    context: Mapping[str, tuple[Passed, ...]]


def overlaps(ranks: Sequence[RankTraffic]) -> tuple[Overlap, ...]:
    """What each edge and each module's context parallelism hid, by name; edges without messages are left out.

    Args:
        ranks: all, in order. Between hosts, times are as good as the hosts' clocks.
    """
    flights: dict[str, list[Flight]] = defaultdict(list)
    for name, flight in _between_stages(ranks):
        flights[name].append(flight)
    for rank in ranks:
        for module, passages in rank.context.items():
            flights[f"{module}, context"] += [
                Flight(p.num_bytes, p.arrived_ns - p.posted_ns, min(p.waited_ns, p.arrived_ns - p.posted_ns))
                for p in passages
            ]
    return tuple(overlap(name, of_name) for name, of_name in sorted(flights.items()) if of_name)


def _between_stages(ranks: Sequence[RankTraffic]) -> Iterator[tuple[str, Flight]]:
    sent = {
        (message.edge, message.microbatch, source, message.peer): (rank.began_ns, message)
        for source, rank in enumerate(ranks)
        for message in rank.traffic.sent
    }
    for destination, rank in enumerate(ranks):
        for received in rank.traffic.received:
            ends = [sent[received.edge, received.microbatch, peer, destination] for peer in received.peers]
            posted = max(began + of.posted_ns for began, of in ends) - rank.began_ns
            seen = [began + of.arrived_ns - rank.began_ns for began, of in ends if of.arrived_ns is not None]
            arrived = max(seen) if len(seen) == len(ends) else None
            yield received.edge, _flight(received, posted, arrived, num_bytes=sum(of.num_bytes for _, of in ends))


def _flight(received: Received, posted_ns: int, arrived: int | None, *, num_bytes: int) -> Flight:
    asked, went_on = received.asked_ns, received.went_on_ns
    if arrived is None:
        arrived = went_on if went_on - asked >= SHORTEST_WAIT_NS else asked
    arrived = max(arrived, posted_ns)
    exposed = max(0, min(went_on, arrived) - max(asked, posted_ns))
    return Flight(num_bytes, arrived - posted_ns, exposed)
