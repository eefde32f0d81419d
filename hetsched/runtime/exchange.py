"""Moves rows between stages along segments: gathers, sends, receives, and puts them in place.

Rows of one route that go from one rank to another travel as one message. Rows that stay on
their rank are copied without one. Nothing here knows layouts or schedules: it is given segments.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hetsched.layout.routes import Segment


class Receive(Protocol):
    """A message on its way."""

    def wait(self) -> None: ...


class Transport(Protocol):
    """What an exchange needs: messages of one (tag, pair of ranks) arrive in the order they were sent."""

    def send(self, rows: torch.Tensor, *, peer: int, tag: int) -> None: ...

    def receive(self, rows: torch.Tensor, *, peer: int, tag: int) -> Receive: ...

    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction of one edge: all that its messages have in common.

    Args:
        tag: tells channels apart on the wire.
        hidden: width of the rows.
        dtype: of the rows on the wire.
    """

    tag: int
    hidden: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Wire:
    """A channel between one pair of ranks.

    Args:
        tag: of the channel.
        source, destination: ranks; messages go one way.
        name: of the channel, for messages to people.
    """

    tag: int
    source: int
    destination: int
    name: str


class Exchange:
    """The sends and receives of one rank.

    Args:
        rank: this process.
        transport: carries the messages.
        device: where rows live.
    """

    def __init__(self, rank: int, transport: Transport, *, device: torch.device) -> None:
        self._rank, self._transport, self.device = rank, transport, device
        self._kept: dict[int, deque[torch.Tensor]] = defaultdict(deque)
        self.sent_bytes = 0

    def send(self, channel: Channel, route: Sequence[Segment], rows: torch.Tensor) -> None:
        """Start sending what ``route`` takes from ``rows`` (``[n, hidden]``) on this rank; keep what stays here."""
        rows = rows.detach().to(channel.dtype)
        by_peer: dict[int, list[torch.Tensor]] = defaultdict(list)
        for s in route:
            if s.src_rank == self._rank:
                by_peer[s.dst_rank].append(rows[s.src_row : s.src_row + s.num_rows])
        for peer, parts in by_peer.items():
            if peer == self._rank:
                self._kept[channel.tag].append(rows)
                continue
            message = (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()
            self.sent_bytes += message.nbytes
            self._transport.send(message, peer=peer, tag=channel.tag)

    def receive(self, channel: Channel, route: Sequence[Segment], num_rows: int) -> Arriving:
        """Start receiving what ``route`` brings to this rank: ``[num_rows, hidden]`` once it has arrived."""
        mine = [s for s in route if s.dst_rank == self._rank]
        counts: dict[int, int] = defaultdict(int)
        for s in mine:
            counts[s.src_rank] += s.num_rows
        kept = self._kept[channel.tag].popleft() if counts.pop(self._rank, 0) else None
        messages: dict[int, tuple[torch.Tensor, Receive]] = {}
        for peer, count in counts.items():
            buffer = torch.empty(count, channel.hidden, dtype=channel.dtype, device=self.device)
            messages[peer] = (buffer, self._transport.receive(buffer, peer=peer, tag=channel.tag))
        out = torch.zeros(num_rows, channel.hidden, dtype=channel.dtype, device=self.device)
        return Arriving(mine, messages, kept, out, rank=self._rank)

    def flush(self) -> None:
        """Wait until every row has left; to be called once a step."""
        self._transport.flush()
        assert not any(self._kept.values()), "rows that stay on a rank were never taken"


class Arriving:
    """Rows on their way to this rank."""

    def __init__(
        self,
        segments: Sequence[Segment],
        messages: dict[int, tuple[torch.Tensor, Receive]],
        kept: torch.Tensor | None,
        out: torch.Tensor,
        *,
        rank: int,
    ) -> None:
        self._segments, self._messages, self._kept, self._out, self._rank = segments, messages, kept, out, rank

    def wait(self) -> torch.Tensor:
        """``[num_rows, hidden]``: each row the sum, in the route's order, of what arrives for it."""
        for _, message in self._messages.values():
            message.wait()
        taken: dict[int, int] = defaultdict(int)
        for s in self._segments:
            if s.src_rank == self._rank:
                assert self._kept is not None
                rows = self._kept[s.src_row : s.src_row + s.num_rows]
            else:
                first = taken[s.src_rank]
                rows = self._messages[s.src_rank][0][first : first + s.num_rows]
                taken[s.src_rank] += s.num_rows
            self._out[s.dst_row : s.dst_row + s.num_rows] += rows
        return self._out
