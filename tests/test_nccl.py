"""What NCCL's carrier asks of CUDA and of NCCL, and in which order; nothing is sent, and there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from hetsched.runtime.events import EventPool
from hetsched.runtime.exchange import Channel, Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.nccl import NcclCarrier, NcclReceive
from hetsched.runtime.transport.nccl_calls import Communicator

RANK = 3
OUT, INTO = (
    Link(tuple(Wire(tag, *ends, "edge") for ends in pairs))
    for tag, pairs in enumerate([((1, 4), (3, 4), (3, 5)), ((1, 3), (4, 3), (4, 0))])
)
"""On both, this rank's peers have other numbers in the group than in the job."""
ELSEWHERE = Link((Wire(2, 0, 1, "edge"),))
TRANSFER = Transfer(Channel(0, 2, torch.float32, "edge"), 0)
ROW_BYTES = 8
Call = tuple[Any, ...]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """What events and communicators are asked for: event, verb and stream, or group, verb, stream and rows."""
    made: list[Call] = []
    names = iter(f"event {number}" for number in range(100))

    class Event:
        def __init__(self, device: torch.device, *, enable_timing: bool = False) -> None:
            self.name = next(names)

        def record(self, stream: Any = None) -> None:
            made.append((self.name, "record", stream))

        def wait(self, stream: Any = None) -> None:
            made.append((self.name, "wait", stream))

        def query(self) -> bool:
            return True

    def communicator(group: str, device: torch.device) -> Any:
        def move(rows: list[tuple[int, int, int]], stream: int, *, is_send: bool) -> None:
            made.append((group, "send" if is_send else "receive", stream, rows))

        return SimpleNamespace(move=move)

    streams = iter(range(100))
    dist.init_process_group("fake", rank=RANK, world_size=6, store=FakeStore())
    monkeypatch.setattr(dist, "new_group", lambda ranks, **_: f"group of {ranks}")
    monkeypatch.setattr(Communicator, "of", communicator)
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(cuda_stream=next(streams)))
    yield made
    dist.destroy_process_group()


def carrier() -> NcclCarrier:
    nccl = NcclCarrier([OUT, ELSEWHERE, INTO], device=torch.device("cpu"))
    nccl.prepare(StepSetup())
    return nccl


@pytest.mark.parametrize(
    ("is_send", "peers", "places"),
    [(True, [4], [2]), (True, [5, 4], [3, 2]), (False, [1], [1]), (False, [4, 1], [3, 1])],
)
def test_a_group_is_moved_on_its_links_stream_behind_what_the_current_one_was_given(
    calls: list[Call], is_send: bool, peers: list[int], places: list[int]
) -> None:
    nccl, link = carrier(), OUT if is_send else INTO
    rows = torch.zeros(8, 2)
    messages = {peer: Message(rows, ((peer, 2),)) for peer in peers}
    moved = nccl.send(link, TRANSFER, messages) if is_send else nccl.receive(link, messages)
    stream, group = nccl._streams[link], f"group of {list(link.ranks)}"
    of_places = [
        (rows.data_ptr() + peer * ROW_BYTES, 2 * ROW_BYTES, place) for peer, place in zip(peers, places, strict=True)
    ]
    given, done = calls[0][0], calls[-1][0]
    assert calls == [
        (given, "record", None),
        (given, "wait", stream),
        (group, "send" if is_send else "receive", stream.cuda_stream, of_places),
        (done, "record", stream),
    ]
    assert given != done
    assert moved.is_completed() and moved.seen(None, EventPool(SimpleNamespace)).name == done


def test_links_have_streams_of_their_own_and_a_steps_events_serve_the_next(calls: list[Call]) -> None:
    nccl, row = carrier(), torch.zeros(1, 2)
    streams = [nccl._streams[link] for link in (OUT, INTO)]
    assert streams[0] is not streams[1] and ELSEWHERE not in nccl._streams
    of_step = []
    for _ in range(2):
        nccl.prepare(StepSetup())
        works = [nccl.send(OUT, TRANSFER, {4: Message(row, ((0, 1),))}) for _ in range(3)]
        of_step.append([work.seen(None, EventPool(SimpleNamespace)).name for work in works])
    assert of_step[0] == of_step[1] and len(set(of_step[0])) == 3


def test_what_was_received_gets_to_its_places_once_it_is_waited_for(calls: list[Call]) -> None:
    nccl, rows = carrier(), torch.zeros(6, 2)
    received = nccl.receive(INTO, {1: Message(rows, ((4, 2),)), 4: Message(rows, ((3, 1), (0, 2)))})
    assert isinstance(received, NcclReceive)
    assert received._rows[1].data_ptr() == rows[4:].data_ptr(), "one run is received where it belongs"
    received._rows[1].fill_(7)
    received._rows[4].copy_(torch.tensor([[1, 1], [2, 2], [3, 3]]))
    done = calls[-1][0]
    calls.clear()
    assert received.wait() is received
    assert calls == [(done, "wait", None)]
    assert rows.tolist() == [[2, 2], [3, 3], [0, 0], [1, 1], [7, 7], [7, 7]]
