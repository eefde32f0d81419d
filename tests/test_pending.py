"""Messages that are kept until they have left or arrived, and how often that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetsched.runtime.events import EventPool
from hetsched.runtime.exchange import Channel, Message, Transfer, Wire
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.pending import PendingMessages

CHANNEL = Channel(0, 1, torch.float32, "edge")
LINK, OTHER = (Link((Wire(tag, 0, 1, "edge"),)) for tag in range(2))


@dataclass
class Work:
    """A message that has arrived or not."""

    has_arrived: bool = False
    is_awaited: bool = True
    num_asked: int = 0

    def is_completed(self) -> bool:
        self.num_asked += 1
        return self.has_arrived and self.is_awaited


def post(pending: PendingMessages, work: Work, number: int, link: Link = LINK) -> None:
    rows = {1: Message(torch.zeros(1, 1), ((0, 1),))}
    pending.add(link, work, rows, Transfer(CHANNEL, number), is_receive=True)


def numbers(pending: PendingMessages) -> list[int]:
    return [message.transfer.microbatch for message in pending.in_order()]


def test_messages_that_have_arrived_are_forgotten_two_at_a_time_and_asked_for_once() -> None:
    pending, works = PendingMessages(), [Work() for _ in range(5)]
    for number, work in enumerate(works[:3]):
        post(pending, work, number)
    assert numbers(pending) == [0, 1, 2], "none has arrived"
    for work in works[:3]:
        work.has_arrived = True
    post(pending, works[3], 3)
    assert numbers(pending) == [2, 3]
    assert [work.num_asked for work in works] == [0, 2, 0, 0, 0]


def test_what_nobody_waits_for_yet_is_kept_with_all_behind_it() -> None:
    pending, late = PendingMessages(), Work(has_arrived=True, is_awaited=False)
    for number, work in enumerate((late, Work(has_arrived=True), Work(has_arrived=True))):
        post(pending, work, number)
    pending.look()
    assert numbers(pending) == [0, 1, 2]
    late.is_awaited = True
    pending.look()
    assert not pending


def test_links_are_asked_apart_and_told_in_the_order_of_posting() -> None:
    pending, works = PendingMessages(), [Work() for _ in range(4)]
    for number, work in enumerate(works):
        post(pending, work, number, (LINK, OTHER)[number % 2])
    works[1].has_arrived = True
    pending.look()
    assert numbers(pending) == [0, 2, 3] and len(pending) == 3


class Made:
    """An event."""

    def record(self, stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: object) -> float:
        return 0.0


def test_events_that_are_taken_back_are_taken_again() -> None:
    pool = EventPool(Made)
    first = [pool.take() for _ in range(3)]
    assert len(set(map(id, first))) == 3
    pool.take_back()
    assert [pool.take() for _ in range(3)] == first and pool.take() not in first
