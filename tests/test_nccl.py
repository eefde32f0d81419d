"""What NCCL's carrier asks of CUDA and of NCCL, and in which order; nothing is sent, and there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from hetsched.parallel.nccl_calls import Communicator
from hetsched.runtime.events import EventPool
from hetsched.runtime.exchange import Channel, Message, StepSetup, Transfer, Wire
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.nccl import NcclCarrier, NcclWork

RANK, DEVICE = 3, torch.device("cuda", 1)
OUT, INTO = (
    Link(tuple(Wire(tag, *ends, "edge") for ends in pairs))
    for tag, pairs in enumerate([((1, 4), (3, 4), (3, 5)), ((1, 3), (4, 3), (4, 0))])
)
"""On both, this rank's peers have other numbers in the group than in the job."""
ELSEWHERE = Link((Wire(2, 0, 1, "edge"),))
TRANSFER = Transfer(Channel(0, 2, torch.float32, "edge"), 0)
ROW_BYTES = 8
Call = tuple[Any, ...]


class Made:
    """An event that notes what it is asked for.

    Args:
        notes: where.
        name: to tell it from others.
        has_time: whether its time can be asked for.
    """

    def __init__(self, notes: list[Call], name: str, *, has_time: bool) -> None:
        self.notes, self.name, self.has_time, self.is_over = notes, name, has_time, True
        self.on_wait = lambda: None

    def record(self, stream: Any = None) -> None:
        self.notes.append((self.name, "record", stream))

    def wait(self, stream: Any = None) -> None:
        self.notes.append((self.name, "wait", stream))
        self.on_wait()

    def query(self) -> bool:
        return self.is_over


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """What is asked for: event, verb and stream, or group, verb, stream and rows; all of it on one device."""
    made: list[Call] = []
    names = iter(f"event {number}" for number in range(100))

    def event(device: torch.device, *, enable_timing: bool = False) -> Made:
        assert device == DEVICE
        return Made(made, next(names), has_time=enable_timing)

    def group_of(ranks: list[int], *, backend: str, pg_options: Any) -> str:
        made.append(("new group", ranks, backend, pg_options))
        return f"group of {ranks}"

    def communicator(group: str, device: torch.device) -> Any:
        def move(rows: list[tuple[int, int, int]], stream: int, *, is_send: bool) -> None:
            made.append((group, "send" if is_send else "receive", stream, rows))

        assert device == DEVICE
        made.append(("connect", group))
        return SimpleNamespace(move=move)

    streams = iter(range(100))
    options = SimpleNamespace(Options=lambda *, is_high_priority_stream: is_high_priority_stream)
    dist.init_process_group("fake", rank=RANK, world_size=6, store=FakeStore())
    monkeypatch.setattr(dist, "ProcessGroupNCCL", options, raising=False)
    monkeypatch.setattr(dist, "new_group", group_of)
    monkeypatch.setattr(Communicator, "of", communicator)
    monkeypatch.setattr(torch, "Event", event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: SimpleNamespace(cuda_stream=next(streams)))
    yield made
    dist.destroy_process_group()


def carrier(calls: list[Call]) -> NcclCarrier:
    """One that is ready for a step; what was asked for until then is forgotten."""
    nccl = NcclCarrier([OUT, ELSEWHERE, INTO], device=DEVICE)
    nccl.prepare(StepSetup())
    calls.clear()
    return nccl


def event_of(work: NcclWork) -> Made:
    event: Any = work.seen(None, EventPool(SimpleNamespace))
    return event  # type: ignore[no-any-return]


def test_every_rank_makes_all_groups_and_connects_its_own_in_the_order_of_the_links(calls: list[Call]) -> None:
    NcclCarrier([INTO, ELSEWHERE, OUT], device=DEVICE)
    links = [list(link.ranks) for link in (INTO, ELSEWHERE, OUT)]
    # The stream of torch's own is not one of those that links have.
    assert calls == [
        *[("new group", ranks, "nccl", True) for ranks in links],
        ("connect", f"group of {links[0]}"),
        ("connect", f"group of {links[2]}"),
    ]


@pytest.mark.parametrize(
    ("is_send", "peers", "places"),
    [(True, [4], [2]), (True, [5, 4], [3, 2]), (False, [1], [1]), (False, [4, 1], [3, 1])],
)
def test_messages_move_on_their_links_stream_behind_what_the_current_one_was_given(
    calls: list[Call], is_send: bool, peers: list[int], places: list[int]
) -> None:
    nccl, link = carrier(calls), OUT if is_send else INTO
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
    event = event_of(moved)
    assert given != done == event.name
    assert event.has_time, "who measures asks for it"
    assert moved.is_completed()
    event.is_over = False
    assert not moved.is_completed()


def test_what_is_packed_is_kept_until_it_has_left(calls: list[Call]) -> None:
    sent = carrier(calls).send(OUT, TRANSFER, {4: Message(torch.zeros(8, 2), ((0, 2), (5, 1)))})
    ((_, _, _, [(address, _, _)]),) = [call for call in calls if call[1] == "send"]
    assert [rows.data_ptr() for rows in sent._rows.values()] == [address]


def test_links_have_streams_of_their_own_and_a_steps_events_serve_the_next(calls: list[Call]) -> None:
    nccl, row = carrier(calls), torch.zeros(1, 2)
    streams = [nccl._streams[link] for link in (OUT, INTO)]
    assert streams[0] is not streams[1] and ELSEWHERE not in nccl._streams
    of_step = []
    for _ in range(2):
        nccl.prepare(StepSetup())
        works = [nccl.send(OUT, TRANSFER, {4: Message(row, ((0, 1),))}) for _ in range(3)]
        of_step.append([event_of(work).name for work in works])
    assert of_step[0] == of_step[1] and len(set(of_step[0])) == 3


def test_what_was_received_gets_to_its_places_once_it_is_waited_for(calls: list[Call]) -> None:
    nccl, rows = carrier(calls), torch.zeros(6, 2)
    received = nccl.receive(INTO, {1: Message(rows, ((4, 2),)), 4: Message(rows, ((3, 1), (0, 2)))})
    assert received._rows[1].data_ptr() == rows[4:].data_ptr(), "one run is received where it belongs"
    event = event_of(received)

    def arrive() -> None:
        received._rows[1].fill_(7)
        received._rows[4].copy_(torch.tensor([[1, 1], [2, 2], [3, 3]]))

    event.on_wait = arrive
    calls.clear()
    # The event is one of the link's stream: that of going on, which is later where rows came early, there is none of.
    assert received.wait() is None
    assert calls == [(event.name, "wait", None)]
    assert rows.tolist() == [[2, 2], [3, 3], [0, 0], [1, 1], [7, 7], [7, 7]]
