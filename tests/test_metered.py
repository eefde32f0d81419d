"""What the meter tells of messages: when their rows were there, when they had arrived, and who waited for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from hetsched.runtime.events import Arrival, Event, EventPool
from hetsched.runtime.exchange import Channel, Message, StepSetup, Transfer
from hetsched.runtime.measure.clock import HostClock
from hetsched.runtime.measure.metered import MeteredTransport
from hetsched.runtime.measure.recorder import Recorder
from hetsched.runtime.transport.memory import OwnMemory
from hetsched.runtime.transport.nccl import NcclReceive
from hetsched.runtime.transport.peer import PeerSend
from hetsched.schedule.action import parse_action

PEER = 3
CHANNEL = Channel(0, 2, torch.float32, "edge")
LONG_AGO_NS = -(10**15)
SIGNALS = Channel(1, 2, torch.float32, "signals", is_signal=True)


@dataclass
class At:
    """An event of a time."""

    time_ns: int

    def record(self, stream: object = None) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Event) -> float:
        raise AssertionError("nobody asks")


class OneMessage(OwnMemory):
    """A transport on streams: what is sent arrives at set times, and what is received is there, packed."""

    def __init__(self, *arrivals_ns: int) -> None:
        self.arrivals_ns = arrivals_ns

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        return nullcontext()

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        return [PeerSend(At(time_ns)) for time_ns in self.arrivals_ns]

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> NcclReceive:
        rooms = {peer: message.packing().fill_(1) for peer, message in messages.items()}
        return NcclReceive(At(LONG_AGO_NS), rooms, messages)

    def flush(self) -> None: ...


class LookingClock(HostClock):
    """Sees messages arrive, as that of a GPU does."""

    def arrival(self, of: Arrival) -> int | None:
        event = of.seen(None, EventPool(lambda: At(0)))
        assert isinstance(event, At)
        self._times.append(event.time_ns)
        return len(self._times) - 1


def metered(*arrivals_ns: int) -> tuple[MeteredTransport, Recorder]:
    recorder = Recorder(LookingClock())
    return MeteredTransport(OneMessage(*arrivals_ns), recorder), recorder


def test_rows_are_in_their_places_once_somebody_waited_for_them() -> None:
    transport, recorder = metered()
    out = torch.zeros(4, 2)
    recorder.begin_step()
    with transport.step(StepSetup()):
        receive = transport.receive(Transfer(CHANNEL, 0), {PEER: Message(out, ((0, 1), (2, 1)))})
        assert not out.any(), "who metered wrote rows"
        receive.wait()
    recorder.end_step()
    assert out.tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    (received,) = transport.traffic().received
    assert received.peers == (PEER,)
    assert 0 <= received.asked_ns <= received.went_on_ns, "who waits goes on then, however early the message was"


def test_a_message_was_there_to_be_sent_as_its_action_began_and_arrives_with_the_last_of_its_transfer() -> None:
    transport, recorder = metered(5_000, 9_000)
    message = Message(torch.zeros(4, 2), ((0, 3),))
    recorder.begin_step()
    with transport.step(StepSetup()), recorder.action(parse_action("llm:0SEND_F0")):
        transport.send(Transfer(CHANNEL, 0), {PEER: message})
        transport.send(Transfer(SIGNALS, 0), {PEER: message})
    recorder.end_step()
    (sent,), (record,) = transport.traffic().sent, recorder.records
    assert (sent.peer, sent.num_bytes, sent.arrived_ns) == (PEER, 24, 9_000)
    assert sent.posted_ns == record.start_ns
    assert record.arrived_ns == 9_000


def test_where_nobody_sees_a_message_arrive_it_has_no_time() -> None:
    transport, recorder = metered()
    recorder.begin_step()
    with transport.step(StepSetup()), recorder.action(parse_action("llm:0SEND_F0")):
        transport.send(Transfer(CHANNEL, 0), {PEER: Message(torch.zeros(4, 2), ((0, 3),))})
    recorder.end_step()
    assert transport.traffic().sent[0].arrived_ns is None
    assert recorder.records[0].arrived_ns is None
