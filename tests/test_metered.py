"""Who looks at an arrival on a stream of its own leaves the rows to whoever waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from hetsched.runtime.clock import HostClock, Waitable
from hetsched.runtime.exchange import Channel, Message, StepSetup, Transfer
from hetsched.runtime.metered import MeteredTransport
from hetsched.runtime.recorder import Recorder
from hetsched.runtime.transport.memory import OwnMemory
from hetsched.runtime.transport.nccl import NcclReceive
from hetsched.runtime.transport.streamed import StreamedReceive

SENDER = 3


class Landed:
    """A group of NCCL's that has landed."""

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None: ...


class OneMessage(OwnMemory):
    """A transport on streams whose message is there, packed."""

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        return nullcontext()

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> None:
        raise AssertionError("nothing leaves this rank")

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> StreamedReceive:
        rooms = {peer: message.packing().fill_(1) for peer, message in messages.items()}
        return StreamedReceive([NcclReceive(Landed(), rooms, messages)])

    def flush(self) -> None: ...


class LookingClock(HostClock):
    """Sees arrivals, as that of a GPU does."""

    def arrival(self, messages: Sequence[Waitable]) -> int | None:
        for message in messages:
            message.wait_on(None)
        return self.mark()


def test_an_arrival_is_seen_before_the_rows_are_in_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    transport = MeteredTransport(OneMessage(), Recorder(LookingClock()))
    transfer, out = Transfer(Channel(0, 2, torch.float32, "edge"), 0), torch.zeros(4, 2)
    recorder = transport._recorder
    recorder.begin_step()
    with transport.step(StepSetup()):
        receive = transport.receive(transfer, {SENDER: Message(out, ((0, 1), (2, 1)))})
        assert not out.any(), "who looked on wrote rows"
        receive.wait()
    recorder.end_step()
    assert out.tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    (received,) = transport.traffic().received
    assert received.arrived_ns is not None and received.arrived_ns <= received.asked_ns
