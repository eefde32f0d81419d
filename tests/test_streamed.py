"""What all transports on streams do, with a carrier of the test's own in place of CUDA's streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from hetsched.errors import JobError
from hetsched.runtime.exchange import Channel, Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport import streamed
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.memory import OwnMemory
from hetsched.runtime.transport.streamed import StreamedTransport

EDGE = Channel(0, 2, torch.float32, "vision->llm, forward")
WIRES = [Wire(0, 0, 1, EDGE.name), Wire(0, 0, 2, EDGE.name), Wire(0, 2, 0, EDGE.name)]
TO_BOTH, FROM_TWO = Link(tuple(WIRES[:2])), Link((WIRES[2],))
ROWS = torch.ones(4, 2)


@dataclass
class Work:
    """What was posted: the link, the peers, and whether it is over."""

    link: Link
    peers: tuple[int, ...]
    is_over: bool
    is_awaited: bool = True
    num_waits: int = 0

    def is_completed(self) -> bool:
        return self.is_over

    def wait(self) -> object:
        self.num_waits += 1
        return self


@dataclass
class Posting(OwnMemory):
    """A carrier that notes what is posted; messages are over at once, or never."""

    are_over: bool = True
    posted: list[Work] = field(default_factory=list)

    def prepare(self, setup: StepSetup) -> None: ...

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> Work:
        return self._post(link, messages)

    def receive(self, link: Link, messages: Mapping[int, Message]) -> Work:
        return self._post(link, messages)

    def _post(self, link: Link, messages: Mapping[int, Message]) -> Work:
        self.posted.append(Work(link, tuple(messages), self.are_over))
        return self.posted[-1]


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> Posting:
    over = SimpleNamespace(record=lambda: None, query=lambda: True)
    monkeypatch.setattr(streamed.torch.cuda, "Event", lambda: over)
    monkeypatch.setattr(streamed.dist, "get_rank", lambda: 0)
    return Posting()


def transport_of(carrier: Posting, *links: Link, timeout_s: float = 60.0) -> StreamedTransport:
    return StreamedTransport(carrier, links, device=torch.device("cpu"), timeout=timedelta(seconds=timeout_s))


def message() -> Message:
    return Message(ROWS, ((0, 4),))


def test_making_one_uses_every_wire_of_this_rank_once(carrier: Posting) -> None:
    transport_of(carrier, TO_BOTH, FROM_TWO, Link((Wire(1, 1, 2, "of others"),)))
    assert [(work.link, work.peers, work.num_waits) for work in carrier.posted] == [
        (TO_BOTH, (1, 2), 0),
        (FROM_TWO, (2,), 1),
    ]


def test_messages_of_one_link_are_posted_together_and_those_of_others_apart(carrier: Posting) -> None:
    transport = transport_of(carrier, TO_BOTH, FROM_TWO)
    carrier.posted.clear()
    with transport.step(StepSetup()):
        arrivals = transport.send(Transfer(EDGE, 0), {1: message(), 2: message()})
        receive = transport.receive(Transfer(EDGE, 0), {2: message()})
        seen = receive.wait()
        transport.flush()
    assert [(work.link, work.peers) for work in carrier.posted] == [(TO_BOTH, (1, 2)), (FROM_TWO, (2,))]
    assert list(arrivals) == [carrier.posted[0]] and seen is carrier.posted[1]


def test_a_transfer_over_several_links_arrives_with_the_last_of_them(carrier: Posting) -> None:
    apart = [Link((wire,)) for wire in (Wire(0, 1, 0, EDGE.name), Wire(0, 2, 0, EDGE.name))]
    transport = transport_of(carrier, *apart)
    carrier.posted.clear()
    with transport.step(StepSetup()):
        seen = transport.receive(Transfer(EDGE, 0), {1: message(), 2: message()}).wait()
    assert [work.num_waits for work in carrier.posted] == [1, 1] and seen is carrier.posted[1]


def test_a_step_that_stands_still_ends_with_what_it_waits_for(carrier: Posting) -> None:
    transport = transport_of(carrier, TO_BOTH, FROM_TWO, timeout_s=0.3)
    carrier.are_over = False
    with transport.step(StepSetup()):
        transport.send(Transfer(EDGE, 3), {1: message()})
        transport.receive(Transfer(EDGE, 5), {2: message()})
        with pytest.raises(JobError, match="vision->llm, forward, microbatch 5: nothing arrived from rank 2 on rank 0"):
            transport.flush()
    carrier.are_over = True
    with transport.step(StepSetup()):
        transport.flush()
