"""What NCCL's carrier asks of a process group, held against what torch's batch_isend_irecv asks; nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeProcessGroup, FakeStore

from hetsched.runtime.exchange import Channel, Message, Transfer, Wire
from hetsched.runtime.transport import nccl as nccl_module
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.nccl import NcclCarrier, NcclReceive

RANK = 3
OUT, INTO = (
    Link(tuple(Wire(tag, *ends, "edge") for ends in pairs))
    for tag, pairs in enumerate([((1, 4), (3, 4), (3, 5)), ((1, 3), (4, 3), (4, 0))])
)
"""On both, this rank's peers have other numbers in the group than in the job."""
ELSEWHERE = Link((Wire(2, 0, 1, "edge"),))
TRANSFER = Transfer(Channel(0, 2, torch.float32, "edge"), 0)
WORK = SimpleNamespace(wait=lambda: None)
Call = tuple[Any, ...]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """What groups of this process are asked for: method, group, and what names tensor, peer and tag."""
    made: list[Call] = []

    def recording(name: str) -> Any:
        def method(group: dist.ProcessGroup, *args: Any) -> Any:
            plain = [(args[0][0].data_ptr(), args[0][0].shape), *args[1:]] if name in ("send", "recv") else args
            made.append((name, group.group_name, *plain))
            return WORK if name == "_end_coalescing" else None

        return method

    dist.init_process_group("fake", rank=RANK, world_size=6, store=FakeStore())
    new_group = dist.new_group
    monkeypatch.setattr(dist, "new_group", lambda ranks, **_: new_group(ranks, backend="fake"))
    monkeypatch.setattr(FakeProcessGroup, "supports_coalescing", True)
    for name in ("_start_coalescing", "send", "recv", "_end_coalescing"):
        monkeypatch.setattr(dist.ProcessGroup, name, recording(name))
    yield made
    dist.destroy_process_group()


def carrier() -> NcclCarrier:
    return NcclCarrier([OUT, ELSEWHERE, INTO], timeout=timedelta(seconds=1))


def batch(carrier: NcclCarrier, link: Link, messages: dict[int, Message], *, is_send: bool) -> Any:
    """The same messages as torch's own way would move them."""
    do, group = (dist.isend if is_send else dist.irecv), carrier._groups[link]
    [work] = dist.batch_isend_irecv([dist.P2POp(do, m.packed(), peer, group) for peer, m in messages.items()])
    return work


@pytest.mark.parametrize(
    ("is_send", "peers", "places"),
    [(True, [4], [2]), (True, [5, 4], [3, 2]), (False, [1], [1]), (False, [4, 1], [3, 1])],
)
def test_a_group_is_asked_for_what_torch_asks_it(
    calls: list[Call], is_send: bool, peers: list[int], places: list[int]
) -> None:
    nccl, link = carrier(), OUT if is_send else INTO
    messages = {peer: Message(torch.zeros(8, 2), ((peer, 2),)) for peer in peers}
    moved = nccl.send(link, TRANSFER, messages) if is_send else nccl.receive(link, messages)
    assert moved.work is WORK
    mine = list(calls)
    calls.clear()
    assert batch(nccl, link, messages, is_send=is_send) is WORK
    assert mine == calls
    method, name = "send" if is_send else "recv", nccl._groups[link].group_name
    assert [call[:2] for call in mine] == [
        (of, name) for of in ["_start_coalescing", *[method] * len(peers), "_end_coalescing"]
    ]
    assert [call[3] for call in mine[1:-1]] == places


def test_a_torch_that_cannot_be_asked_so_is_asked_otherwise(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[dist.P2POp] = []
    monkeypatch.setattr(nccl_module, "_HAS_COALESCING", False)
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda operations: posted.extend(operations) or [WORK])
    nccl = carrier()
    rows = torch.zeros(8, 2)
    assert nccl.send(OUT, TRANSFER, {5: Message(rows, ((0, 8),))}).work is WORK
    assert calls == []
    [operation] = posted
    assert (operation.op, operation.peer, operation.group) == (dist.isend, 5, nccl._groups[OUT])
    assert operation.tensor.data_ptr() == rows.data_ptr()


def test_what_was_received_gets_to_its_places_once_it_is_waited_for(calls: list[Call]) -> None:
    nccl, rows = carrier(), torch.zeros(6, 2)
    received = nccl.receive(INTO, {1: Message(rows, ((4, 2),)), 4: Message(rows, ((3, 1), (0, 2)))})
    assert isinstance(received, NcclReceive)
    assert received.rows[1].data_ptr() == rows[4:].data_ptr(), "one run is received where it belongs"
    received.rows[1].fill_(7)
    received.rows[4].copy_(torch.tensor([[1, 1], [2, 2], [3, 3]]))
    received.wait()
    assert rows.tolist() == [[2, 2], [3, 3], [0, 0], [1, 1], [7, 7], [7, 7]]
