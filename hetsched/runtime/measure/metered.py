"""Measures messages between stages: what was sent, who waited for it, and when it arrived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from hetsched.layout.rank_share import Runs
from hetsched.runtime.arriving import Receive
from hetsched.runtime.events import Arrival
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Transport
from hetsched.runtime.measure.recorder import Recorder, Wait
from hetsched.runtime.transport.memory import MemoryOfAnother


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that left this rank.

    Args:
        edge: name of the channel.
        microbatch, peer: which of its messages, and the rank that it went to.
        num_bytes: of its rows.
        posted_ns: when its rows were there to be sent, from the start of the step.
        arrived_ns: when it had arrived, with all others of its transfer; None if nobody saw it.
    """

    edge: str
    microbatch: int
    peer: int
    num_bytes: int
    posted_ns: int
    arrived_ns: int | None


@dataclass(frozen=True, slots=True)
class Received:
    """The messages of one microbatch of one channel that came to this rank.

    Args:
        edge, microbatch: as in Sent.
        peers: the ranks that they came from.
        asked_ns, went_on_ns: between which somebody waited for them; the same where nobody did.
    """

    edge: str
    microbatch: int
    peers: tuple[int, ...]
    asked_ns: int
    went_on_ns: int


@dataclass(frozen=True)
class Traffic:
    """What one rank's messages did in a step; signals, which are a byte, left out."""

    sent: tuple[Sent, ...]
    received: tuple[Received, ...]


class _Posted(NamedTuple):
    """What was sent of one transfer: runs of rows by peer, and the moments at which its rows were there and arrived."""

    transfer: Transfer
    runs: Mapping[int, Runs]
    moment: int
    arrived: Sequence[int]


class _Awaited(NamedTuple):
    """What comes of one transfer, and its waits so far."""

    transfer: Transfer
    peers: tuple[int, ...]
    waits: list[Wait]


class MeteredTransport(MemoryOfAnother):
    """A transport whose waits and messages are recorded.

    Args:
        transport: carries the messages.
        recorder: of this rank.
    """

    def __init__(self, transport: Transport, recorder: Recorder) -> None:
        super().__init__(transport)
        self._transport, self._recorder = transport, recorder
        self._sent: list[_Posted] = []
        self._received: list[_Awaited] = []

    @contextmanager
    def step(self, setup: StepSetup) -> Iterator[None]:
        """As in Transport."""
        self._sent, self._received = [], []
        with self._transport.step(setup):
            yield

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        """As in Transport."""
        on_their_way = self._transport.send(transfer, messages)
        if not transfer.channel.is_signal:
            runs = {peer: message.runs for peer, message in messages.items()}
            self._sent.append(_Posted(transfer, runs, *self._recorder.sent(on_their_way)))
        return on_their_way

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive:
        """As in Transport."""
        receive = self._transport.receive(transfer, messages)
        awaited = _Awaited(transfer, tuple(messages), [])
        if not transfer.channel.is_signal:
            self._received.append(awaited)
        return _MeteredReceive(receive, self._recorder, awaited.waits)

    def flush(self) -> None:
        """As in Transport."""
        self._transport.flush()

    def traffic(self) -> Traffic:
        """What was measured, once the recorder's step has ended."""
        time_ns = self._recorder.time_ns
        sent = (
            Sent(
                of.transfer.channel.name,
                of.transfer.microbatch,
                peer,
                sum(count for _, count in runs) * of.transfer.channel.row_bytes,
                posted_ns=time_ns(of.moment),
                arrived_ns=self._recorder.last_ns(of.arrived),
            )
            for of in self._sent
            for peer, runs in of.runs.items()
        )
        received = (
            Received(
                of.transfer.channel.name,
                of.transfer.microbatch,
                of.peers,
                asked_ns=time_ns(of.waits[0].start),
                went_on_ns=time_ns(of.waits[-1].end),
            )
            for of in self._received
            if of.waits
        )
        return Traffic(tuple(sent), tuple(received))


class _MeteredReceive:
    """Messages on their way, whose waits are recorded."""

    def __init__(self, receive: Receive, recorder: Recorder, waits: list[Wait]) -> None:
        self._receive, self._recorder, self._waits = receive, recorder, waits

    def wait(self) -> None:
        self._waits.append(self._recorder.wait_for(self._receive.wait))
