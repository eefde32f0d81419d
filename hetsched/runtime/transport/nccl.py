"""NCCL's sends and receives: GPUs, of one host or of several.

NCCL has no tags: it matches by order within a communicator, and a communicator's operations run in order on one stream.
So every link has a communicator and a stream of its own, and what a SEND or RECV moves on it is enqueued at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from hetsched.parallel.nccl_calls import Communicator
from hetsched.runtime.events import Event, EventPool
from hetsched.runtime.exchange import Message, StepSetup, Transfer
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.memory import OwnMemory

BACKEND = "cpu:gloo,cuda:nccl"
"""For init_process_group: the ranks exchange losses and descriptions over gloo, sums of gradients over NCCL."""


class NcclCarrier(OwnMemory):
    """A communicator and a stream a link; see Carrier.

    Args:
        links: of the job.
        device: this rank's GPU, the current one.

    Raises:
        JobError: NCCL's functions cannot be called here.
    """

    def __init__(self, links: Sequence[Link], *, device: torch.device) -> None:
        groups = {link: _group_of(link) for link in links}
        mine = [link for link in links if dist.get_rank() in link.ranks]
        # In the order of the links everywhere, as NCCL waits for the others.
        self._communicators = {link: Communicator.of(groups[link], device) for link in mine}
        self._streams = {link: torch.cuda.Stream(device) for link in mine}  # type: ignore[no-untyped-call]
        self._places = {link: {rank: place for place, rank in enumerate(link.ranks)} for link in mine}
        self._given = torch.Event(device)
        self._events = EventPool(partial(torch.Event, device, enable_timing=True))

    def prepare(self, setup: StepSetup) -> None:
        """As in Carrier: events are free again; NCCL needs no memory."""
        self._events.take_back()

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> NcclWork:
        """As in Carrier."""
        rows = {peer: message.packed() for peer, message in messages.items()}
        return NcclWork(self._post(link, rows, is_send=True), rows)

    def receive(self, link: Link, messages: Mapping[int, Message]) -> NcclReceive:
        """As in Carrier."""
        packed = {peer: message.packing() for peer, message in messages.items()}
        return NcclReceive(self._post(link, packed, is_send=False), packed, messages)

    def _post(self, link: Link, rows: Mapping[int, torch.Tensor], *, is_send: bool) -> Event:
        """Behind all that the current stream was given; returns the event of when they have left or arrived."""
        stream, places, done = self._streams[link], self._places[link], self._events.take()
        self._given.record()
        # What it recorded until now: it may be recorded again at once.
        self._given.wait(stream)
        of_places = [(of.data_ptr(), of.nbytes, places[peer]) for peer, of in rows.items()]
        self._communicators[link].move(of_places, stream.cuda_stream, is_send=is_send)
        done.record(stream)
        return done


def _group_of(link: Link) -> Any:
    """A group of torch's, which every rank of the job makes.

    The stream that it comes with is never used, so that is taken from those of high priority: torch hands out 32 of
    each, and a link's own must be nobody else's.
    """
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    return dist.new_group(list(link.ranks), backend="nccl", pg_options=options)


class NcclWork:
    """What was moved on a link at once; keeps its memory.

    Args:
        done: is recorded behind it, on the link's stream.
        rows: by peer.
    """

    is_awaited = True

    def __init__(self, done: Event, rows: Mapping[int, torch.Tensor]) -> None:
        self._done, self._rows = done, rows

    def is_completed(self) -> bool:
        return self._done.query()

    def seen(self, aside: Any, events: EventPool) -> Event:
        """As in Arrival: NCCL is done with a send once the receiver, or for few rows its memory, has them."""
        return self._done


class NcclReceive(NcclWork):
    """Messages that are received; the current stream that waits for them also puts rows in their places.

    Args:
        done: as in NcclWork.
        rows: where they are received.
        messages: where they belong.
    """

    def __init__(self, done: Event, rows: Mapping[int, torch.Tensor], messages: Mapping[int, Message]) -> None:
        super().__init__(done, rows)
        self._messages = messages

    def wait(self) -> None:
        """As in Receive; the event of their arrival may be long past, and says nothing of when the stream goes on."""
        self._done.wait()
        for peer, message in self._messages.items():
            message.unpack(self._rows[peer])
