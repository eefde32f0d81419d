"""Measures messages between stages: what was sent, who waited for it, and when it arrived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from hetsched.runtime.arriving import Receive
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Transport
from hetsched.runtime.recorder import Recorder, Wait
from hetsched.runtime.transport.memory import MemoryOfAnother
from hetsched.runtime.transport.streamed import StreamedReceive


@dataclass(frozen=True, slots=True)
class Sent:
    """One message that left this rank.

    Args:
        edge: name of the channel.
        microbatch, peer: which of its messages, and the rank that it went to.
        num_bytes: of its rows.
        posted_ns: when its rows were there to be sent, from the start of the step.
    """

    edge: str
    microbatch: int
    peer: int
    num_bytes: int
    posted_ns: int


@dataclass(frozen=True, slots=True)
class Received:
    """The messages of one microbatch of one channel that came to this rank.

    Args:
        edge, microbatch: as in Sent.
        peers: the ranks that they came from.
        asked_ns, went_on_ns: between which somebody waited for them; the same where nobody did.
        arrived_ns: when the last of them was there; None if nobody saw it.
    """

    edge: str
    microbatch: int
    peers: tuple[int, ...]
    asked_ns: int
    went_on_ns: int
    arrived_ns: int | None


@dataclass(frozen=True)
class Traffic:
    """What one rank's messages did in a step; signals, which are a byte, left out."""

    sent: tuple[Sent, ...]
    received: tuple[Received, ...]


@dataclass(frozen=True, slots=True)
class _Posted:
    """What was sent of one transfer: bytes by peer, and the moment at which its rows were there."""

    transfer: Transfer
    num_bytes: Mapping[int, int]
    moment: int


@dataclass(frozen=True, slots=True)
class _Awaited:
    """What comes of one transfer: the moment at which it arrives, if anybody sees it, and its waits so far."""

    transfer: Transfer
    peers: tuple[int, ...]
    arrived: int | None
    waits: list[Wait] = field(default_factory=list)


class MeteredTransport(MemoryOfAnother):
    """A transport whose waits and messages are recorded.

    Args:
        transport: carries the messages.
        recorder: of this rank.
    """

    def __init__(self, transport: Transport, recorder: Recorder) -> None:
        super().__init__(transport)
        self._recorder = recorder
        self._sent: list[_Posted] = []
        self._received: list[_Awaited] = []

    @contextmanager
    def step(self, setup: StepSetup) -> Iterator[None]:
        """As in Transport."""
        self._sent, self._received = [], []
        with self._transport.step(setup):
            yield

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        """As in Transport."""
        sizes = {peer: message.num_rows * transfer.channel.row_bytes for peer, message in messages.items()}
        self._sent.append(_Posted(transfer, sizes, self._recorder.mark()))
        self._transport.send(transfer, messages)

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive:
        """As in Transport."""
        receive = self._transport.receive(transfer, messages)
        # What the hosts carry arrives when the host waits for it: nobody else sees it.
        arrived = None
        if isinstance(receive, StreamedReceive) and not transfer.channel.is_signal:
            arrived = self._recorder.received(receive.arrivals)
        awaited = _Awaited(transfer, tuple(messages), arrived)
        self._received.append(awaited)
        return _MeteredReceive(receive, self._recorder, awaited.waits)

    def flush(self) -> None:
        """As in Transport."""
        self._transport.flush()

    def traffic(self) -> Traffic:
        """What was measured, once the recorder's step has ended."""
        time_ns = self._recorder.time_ns
        sent = (
            Sent(of.transfer.channel.name, of.transfer.microbatch, peer, num_bytes, time_ns(of.moment))
            for of in self._sent
            for peer, num_bytes in of.num_bytes.items()
            if not of.transfer.channel.is_signal
        )
        received = (
            Received(
                of.transfer.channel.name,
                of.transfer.microbatch,
                of.peers,
                asked_ns=time_ns(of.waits[0].start),
                went_on_ns=time_ns(of.waits[-1].end),
                arrived_ns=None if of.arrived is None else time_ns(of.arrived),
            )
            for of in self._received
            if of.waits and not of.transfer.channel.is_signal
        )
        return Traffic(tuple(sent), tuple(received))


class _MeteredReceive:
    """Messages on their way, whose waits are recorded."""

    def __init__(self, receive: Receive, recorder: Recorder, waits: list[Wait]) -> None:
        self._receive, self._recorder, self._waits = receive, recorder, waits

    def wait(self) -> None:
        with self._recorder.waiting() as wait:
            self._receive.wait()
        self._waits.append(wait)
