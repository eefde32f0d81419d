"""Messages that were enqueued and may not have left or arrived yet: their memory, and what a step waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from hetsched.runtime.exchange import Message, Transfer
from hetsched.runtime.transport.links import Link


class Posted(Protocol):
    """What was enqueued for one link."""

    @property
    def is_awaited(self) -> bool:
        """False for messages that are not known to be completed until somebody waits for them, and nobody does yet."""

    def is_completed(self) -> bool: ...


class Pending(NamedTuple):
    """Messages of this step that had not left or arrived when last looked at.

    Args:
        work: the carrier's handle.
        rows: by peer; their memory is kept until then.
        transfer: what they belong to.
        is_receive: whether this rank is the destination.
        number: of those posted, in order.
    """

    work: Posted
    rows: Mapping[int, Message]
    transfer: Transfer
    is_receive: bool
    number: int


class PendingMessages:
    """Those of one step on this rank.

    Memory that is still being sent must not go back to the allocator, which knows the current stream alone, so it is
    kept here until somebody looks and finds the message gone.
    """

    def __init__(self) -> None:
        self._of_link: dict[Link, deque[Pending]] = {}
        self._num_added = 0

    def __len__(self) -> int:
        return sum(map(len, self._of_link.values()))

    def add(
        self, link: Link, work: Posted, rows: Mapping[int, Message], transfer: Transfer, *, is_receive: bool
    ) -> None:
        """Messages that were posted, behind all others of the link; those before them are looked at."""
        pending = self._of_link.setdefault(link, deque())
        # To ask takes the host as long as to record an event: once for two, as they arrive in the order of posting.
        while len(pending) > 1 and pending[0].work.is_awaited and pending[1].work.is_completed():
            pending.popleft()
            pending.popleft()
        pending.append(Pending(work, rows, transfer, is_receive, self._num_added))
        self._num_added += 1

    def look(self) -> None:
        """Forget what has left or arrived."""
        for pending in self._of_link.values():
            while pending and pending[0].work.is_completed():
                pending.popleft()

    def in_order(self) -> list[Pending]:
        """As they were posted."""
        return sorted(chain(*map(list, self._of_link.values())), key=lambda message: message.number)


def what_is_missing(pending: Sequence[Pending], *, rank: int, timeout_s: float) -> str:
    """What a step waits for that has stood still: the first receive, since no action waits for a send.

    Args:
        pending: in the order in which this rank posted them.
        rank: this one.
        timeout_s: how long nothing went on.
    """
    candidates = [m for m in pending if m.is_receive and m.work.is_awaited] or [m for m in pending if m.is_receive]
    message = next(iter([*candidates, *pending]), None)
    if message is None:
        return f"rank {rank}: the step stood still for {timeout_s:g} s: a rank is missing in a sum of gradients"
    peers = "rank " + " or ".join(map(str, message.rows))
    missing = f"{peers} did not receive from rank {rank}"
    if message.is_receive:
        missing = f"nothing arrived from {peers} on rank {rank}"
    return f"{message.transfer}: {missing} within {timeout_s:g} s; {if_slow(peers)}"


def if_slow(peers: str) -> str:
    """What to change where a message was waited for too long, but nobody is gone."""
    return f"raise Engine(timeout_s=...) if {peers} is only slow, as in first steps that compile"
