"""Moves rows between stages along segments: gathers, sends, receives, and puts them in place.

Rows of one route that go from one rank to another travel as one message. Rows that stay on
their rank are copied without one. Nothing here knows layouts or schedules: it is given segments.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from hetsched.layout.routes import Segment


@dataclass(frozen=True, slots=True)
class Channel:
    """One direction of one edge: all that its messages have in common.

    Args:
        tag: tells channels apart on the wire.
        hidden: width of the rows.
        dtype: of the rows on the wire.
        name: edge and direction, for messages to people.
        is_signal: its messages are all alike, and are only counted.
    """

    tag: int
    hidden: int
    dtype: torch.dtype
    name: str
    is_signal: bool = False

    @property
    def row_bytes(self) -> int:
        return self.hidden * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Transfer:
    """One microbatch of one channel; prints as people are told of it."""

    channel: Channel
    microbatch: int

    def __str__(self) -> str:
        return f"{self.channel.name}, microbatch {self.microbatch}"


@dataclass(frozen=True, slots=True)
class Message:
    """The rows of one message where they lie at one of its ends: in runs, which travel one after the other.

    Args:
        rows: contiguous ``[n, hidden]``; runs of it may be sent from where they lie and received to where they belong.
        runs: first row and number of rows of each.
    """

    rows: torch.Tensor
    runs: tuple[tuple[int, int], ...]

    @property
    def num_rows(self) -> int:
        return sum(count for _, count in self.runs)

    def packed(self) -> torch.Tensor:
        """Contiguous ``[num_rows, hidden]``; a view of ``rows`` if it is one run."""
        parts = self._parts()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def room(self) -> torch.Tensor:
        """Contiguous ``[num_rows, hidden]`` to receive the rows in; the place of the one run if there is one."""
        parts = self._parts()
        return parts[0] if len(parts) == 1 else self.rows.new_empty(self.num_rows, self.rows.shape[1])

    def unpack(self, packed: torch.Tensor) -> None:
        """Copy what was received to its places, unless that is where it lies."""
        parts = self._parts()
        if parts[0].data_ptr() != packed.data_ptr():
            copy_all(parts, torch.split(packed, [count for _, count in self.runs]))

    def _parts(self) -> list[torch.Tensor]:
        return [self.rows[first : first + count] for first, count in self.runs]


def copy_all(to: Sequence[torch.Tensor], source: Sequence[torch.Tensor]) -> None:
    """Copy each tensor to that of the same number, on a GPU in few launches."""
    torch._foreach_copy_(list(to), list(source))


class Receive(Protocol):
    """Messages on their way."""

    def wait(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StepSetup:
    """What a transport is told of a step before it begins.

    Args:
        may_load_kernels: then nothing may wait on a device for a peer.
        largest_bytes: of the messages of each channel, by tag.
        digest: of the step plan, where messages are compared.
    """

    may_load_kernels: bool = False
    largest_bytes: Mapping[int, int] = field(default_factory=dict)
    digest: int = 0


class Transport(Protocol):
    """What an exchange needs: messages of one channel and pair of ranks arrive in the order they were sent."""

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        """What a step runs in; every rank enters it with an equal setup."""

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        """Start sending, by destination; rows must not change until ``flush``."""

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive:
        """Start receiving rows to their places, by source; only ``wait`` says when they are there."""

    def flush(self) -> None:
        """Wait until every message of the step has left or arrived."""


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
        self._signaled: dict[tuple[int, int], int] = defaultdict(int)
        self.sent_bytes = 0

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        """What a step runs in; see Transport."""
        self.sent_bytes = 0
        return self._transport.step(setup)

    def send(self, transfer: Transfer, route: Sequence[Segment], rows: torch.Tensor) -> None:
        """Start sending what ``route`` takes from ``rows`` (``[n, hidden]``) on this rank; keep what stays here."""
        rows = rows.detach().to(transfer.channel.dtype).contiguous()
        by_peer: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for s in route:
            if s.src_rank == self._rank:
                by_peer[s.dst_rank].append((s.src_row, s.num_rows))
        if by_peer.pop(self._rank, None):
            self._kept[transfer.channel.tag].append(rows)
        self._send(transfer, {peer: Message(rows, joined(runs)) for peer, runs in by_peer.items()})

    def _send(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        self.sent_bytes += sum(message.num_rows for message in messages.values()) * transfer.channel.row_bytes
        if messages:
            self._transport.send(transfer, messages)

    def receive(self, transfer: Transfer, route: Sequence[Segment], num_rows: int) -> Arriving:
        """Start receiving what ``route`` brings to this rank: ``[num_rows, hidden]`` once it has arrived."""
        mine = [s for s in route if s.dst_rank == self._rank]
        by_source: dict[int, list[Segment]] = defaultdict(list)
        for s in mine:
            by_source[s.src_rank].append(s)
        own = by_source.pop(self._rank, [])
        kept = self._kept[transfer.channel.tag].popleft() if own else None
        # Where every row comes once, as always in a forward, there is nothing to add up.
        if comes_once(mine, num_rows):
            out = self._empty(transfer.channel, num_rows)
            places = {peer: joined((s.dst_row, s.num_rows) for s in of) for peer, of in by_source.items()}
            receive = self._receive(transfer, {peer: Message(out, runs) for peer, runs in places.items()})
            return Placed(out, [] if kept is None else [(s, kept) for s in own], receive)
        counts = {peer: sum(s.num_rows for s in of) for peer, of in by_source.items()}
        buffers = {peer: self._empty(transfer.channel, count) for peer, count in counts.items()}
        receive = self._receive(transfer, {peer: Message(rows, ((0, len(rows)),)) for peer, rows in buffers.items()})
        buffers[self._rank] = self._empty(transfer.channel, 0) if kept is None else kept
        return Summed(mine, buffers, receive, num_rows=num_rows, rank=self._rank)

    def _receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive | None:
        return self._transport.receive(transfer, messages) if messages else None

    def _empty(self, channel: Channel, num_rows: int) -> torch.Tensor:
        return torch.empty(num_rows, channel.hidden, dtype=channel.dtype, device=self.device)

    def signal(self, transfer: Transfer, peers: Collection[int]) -> None:
        """Tell each of the ranks ``peers`` that something is done."""
        self._send(transfer, {peer: Message(self._token(transfer.channel), ((0, 1),)) for peer in peers})

    def await_signals(self, transfer: Transfer, counts: Mapping[int, int]) -> None:
        """Wait until each rank in ``counts`` has signaled so often since the step began."""
        posted: list[Receive] = []
        while waiting := [peer for peer, count in counts.items() if self._signaled[transfer.channel.tag, peer] < count]:
            tokens = {peer: Message(self._token(transfer.channel), ((0, 1),)) for peer in waiting}
            posted.append(self._transport.receive(transfer, tokens))
            for peer in waiting:
                self._signaled[transfer.channel.tag, peer] += 1
        for message in posted:
            message.wait()

    def _token(self, channel: Channel) -> torch.Tensor:
        return torch.zeros(1, channel.hidden, dtype=channel.dtype, device=self.device)

    def flush(self) -> None:
        """Wait until every row has left; to be called once a step."""
        self._transport.flush()
        self._signaled.clear()
        assert not any(self._kept.values()), "rows that stay on a rank were never taken"


def comes_once(segments: Iterable[Segment], num_rows: int) -> bool:
    """Whether every one of a rank's ``num_rows`` rows (> 0) is the end of one segment."""
    end = 0
    for start, count in sorted((s.dst_row, s.num_rows) for s in segments):
        if start != end:
            return False
        end += count
    return end == num_rows > 0


def joined(runs: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Runs (first row, number of rows) where each that goes on where the one before ends is one with it."""
    out: list[tuple[int, int]] = []
    for first, count in runs:
        if out and sum(out[-1]) == first:
            out[-1] = out[-1][0], out[-1][1] + count
        else:
            out.append((first, count))
    return tuple(out)


class Arriving(Protocol):
    """Rows on their way to this rank."""

    def wait(self) -> torch.Tensor:
        """``[num_rows, hidden]``: each row the sum, in the route's order, of what arrives for it."""


class Placed:
    """Rows that come once each, and land in their places.

    Args:
        out: where messages put them; from ``wait`` on the caller's.
        own: segments from this rank, and the rows that they are taken from.
        receive: of the messages.
    """

    def __init__(self, out: torch.Tensor, own: Sequence[tuple[Segment, torch.Tensor]], receive: Receive | None) -> None:
        self._out, self._own, self._receive = out, own, receive

    def wait(self) -> torch.Tensor:
        """As in Arriving."""
        # This rank's rows first: they are copied while others are on their way.
        if self._own:
            places = [self._out[s.dst_row : s.dst_row + s.num_rows] for s, _ in self._own]
            copy_all(places, [rows[s.src_row : s.src_row + s.num_rows] for s, rows in self._own])
        if self._receive is not None:
            self._receive.wait()
        return self._out


class Summed:
    """Rows of which some come more than once, or not at all.

    Args:
        segments: those that end here, in the order in which their rows are summed.
        sources: by rank what its segments are taken from: of others their messages, of this rank its own rows.
        receive: of the messages.
        num_rows: that arrive.
        rank: this one.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        sources: Mapping[int, torch.Tensor],
        receive: Receive | None,
        *,
        num_rows: int,
        rank: int,
    ) -> None:
        self._segments, self._sources, self._receive = segments, sources, receive
        self._num_rows, self._rank = num_rows, rank

    def wait(self) -> torch.Tensor:
        """As in Arriving."""
        if self._receive is not None:
            self._receive.wait()
        own = self._sources[self._rank]
        out = own.new_zeros(self._num_rows, own.shape[1])
        taken: dict[int, int] = defaultdict(int)
        for s in self._segments:
            # A message holds its segments one after the other.
            first = s.src_row if s.src_rank == self._rank else taken[s.src_rank]
            taken[s.src_rank] += s.num_rows
            out[s.dst_row : s.dst_row + s.num_rows] += self._sources[s.src_rank][first : first + s.num_rows]
        return out
