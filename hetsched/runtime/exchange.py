"""Moves rows between stages along routes: sends, receives, and puts them in place.

Rows of one route that go from one rank to another travel as one message. Rows that stay on
their rank are copied without one. Nothing here knows layouts or schedules: it is given one rank's share of a route.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from hetsched.layout.rank_share import Piece, RankShare, Runs
from hetsched.lower.rooms import Rooms
from hetsched.runtime.arriving import Arriving, Placed, Receive, Summed, copy_all
from hetsched.runtime.events import Arrival


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


class Message(NamedTuple):
    """The rows of one message where they lie at one of its ends: in runs, which travel one after the other.

    Args:
        rows: contiguous ``[n, hidden]``; runs of it may be sent from where they lie and received to where they belong.
        runs: first row and number of rows of each.
        pieces: at the source, for who puts rows into the receiver's room: the same rows, and their places there.
    """

    rows: torch.Tensor
    runs: Runs
    pieces: tuple[Piece, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(count for _, count in self.runs)

    def packed(self) -> torch.Tensor:
        """Contiguous ``[num_rows, hidden]``; a view of ``rows`` if it is one run."""
        parts = self._parts()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def packing(self) -> torch.Tensor:
        """Contiguous ``[num_rows, hidden]`` to receive the rows in; the place of the one run if there is one."""
        parts = self._parts()
        return parts[0] if len(parts) == 1 else self.rows.new_empty(self.num_rows, self.rows.shape[1])

    def unpack(self, packed: torch.Tensor) -> None:
        """Copy what was received in ``packing`` to its places, unless that is where it lies."""
        if len(self.runs) > 1:
            copy_all(self._parts(), torch.split(packed, [count for _, count in self.runs]))

    def _parts(self) -> list[torch.Tensor]:
        if self.runs == ((0, len(self.rows)),):
            return [self.rows]
        return [self.rows[first : first + count] for first, count in self.runs]


@dataclass(frozen=True, slots=True)
class StepSetup:
    """What a transport is told of a step before it begins.

    Args:
        may_load_kernels: then nothing may wait on a device for a peer.
        largest_bytes: of what arrives on a rank in one transfer of each channel, by tag.
        rooms: where that lies, by tag and receiving rank, for who lends memory.
        digest: of the step plan, where messages are compared.
    """

    may_load_kernels: bool = False
    largest_bytes: Mapping[int, int] = field(default_factory=dict)
    rooms: Mapping[tuple[int, int], Rooms] = field(default_factory=dict)
    digest: int = 0


class Lender(Protocol):
    """Who may have memory that senders put rows into."""

    def room(self, transfer: Transfer, num_rows: int) -> torch.Tensor | None:
        """Memory ``[num_rows, hidden]`` that senders put rows into, lent until ``give_back``; None if it has none."""

    def give_back(self, transfer: Transfer) -> None:
        """What reads the room of a transfer is enqueued; there may have been none."""

    def lends(self, rows: torch.Tensor) -> bool:
        """Whether these rows lie in memory that is lent."""


class Transport(Lender, Protocol):
    """What an exchange needs: messages of one channel and pair of ranks arrive in the order they were sent."""

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        """What a step runs in; every rank enters it with an equal setup."""

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        """Start sending, by destination; rows must not change until ``flush``.

        Returns when the messages arrive, for who measures it; nothing where nobody sees it.
        """

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive:
        """Start receiving rows to their places, by source; only ``wait`` says when they are there.

        The rows are those of the room, where there is one.
        """

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

    def send(self, transfer: Transfer, share: RankShare, rows: torch.Tensor) -> None:
        """Start sending what this rank's share of a route takes from ``rows`` (``[n, hidden]``); keep what stays."""
        # Mostly there is nothing to do, and to ask torch for it all would take as long as a launch.
        if rows.requires_grad:
            rows = rows.detach()
        if rows.dtype != transfer.channel.dtype or not rows.is_contiguous():
            rows = rows.to(transfer.channel.dtype).contiguous()
        rows = self.lasting(rows)
        if share.own:
            self._kept[transfer.channel.tag].append(rows)
        if share.sends:
            self.sent_bytes += share.sent_rows * transfer.channel.row_bytes
            messages = {peer: Message(rows, of.runs, of.pieces) for peer, of in share.sends.items()}
            self._transport.send(transfer, messages)

    def receive(self, transfer: Transfer, share: RankShare) -> Arriving:
        """Start receiving what this rank's share brings: ``[share.num_rows, hidden]`` once it has arrived.

        The rows may be lent: ``give_back`` ends that.
        """
        kept = self._kept[transfer.channel.tag].popleft() if share.own else None
        room = self._transport.room(transfer, share.room_rows) if share.receives else None
        is_lent = room is not None
        if room is None:
            channel = transfer.channel
            room = torch.empty(share.room_rows, channel.hidden, dtype=channel.dtype, device=self.device)
        messages = {peer: Message(room, runs) for peer, runs in share.receives.items()}
        receive = self._transport.receive(transfer, messages) if messages else None
        if share.addends is None:
            return Placed(room, share, kept, receive, is_lent=is_lent)
        return Summed(room, share, kept, receive, rank=self._rank)

    def give_back(self, transfer: Transfer) -> None:
        """Nothing that is enqueued from now on reads the rows of a transfer."""
        self._transport.give_back(transfer)

    def lasting(self, rows: torch.Tensor) -> torch.Tensor:
        """The same rows in memory that is not lent: a stage may return what it was given."""
        return rows.clone() if self._transport.lends(rows) else rows

    def signal(self, transfer: Transfer, peers: Collection[int]) -> None:
        """Tell each of the ranks ``peers`` that something is done."""
        if peers:
            self.sent_bytes += len(peers) * transfer.channel.row_bytes
            self._transport.send(transfer, {peer: self._token(transfer.channel) for peer in peers})

    def await_signals(self, transfer: Transfer, counts: Mapping[int, int]) -> None:
        """Wait until each rank in ``counts`` has signaled so often since the step began."""
        posted: list[Receive] = []
        while waiting := [peer for peer, count in counts.items() if self._signaled[transfer.channel.tag, peer] < count]:
            tokens = {peer: self._token(transfer.channel) for peer in waiting}
            posted.append(self._transport.receive(transfer, tokens))
            for peer in waiting:
                self._signaled[transfer.channel.tag, peer] += 1
        for message in posted:
            message.wait()

    def _token(self, channel: Channel) -> Message:
        token = torch.zeros(1, channel.hidden, dtype=channel.dtype, device=self.device)
        return Message(token, ((0, 1),))

    def flush(self) -> None:
        """Wait until every row has left; to be called once a step."""
        self._transport.flush()
        self._signaled.clear()
        assert not any(self._kept.values()), "rows that stay on a rank were never taken"
