"""Rows of GPUs carried through the memory of their hosts: slow, but nothing waits on a device for a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta

import torch

from hetsched.runtime.arriving import Receive
from hetsched.runtime.events import Arrival
from hetsched.runtime.exchange import Message, StepSetup, Transfer
from hetsched.runtime.transport.gloo import GlooTransport
from hetsched.runtime.transport.memory import OwnMemory


class StagedTransport(OwnMemory):
    """Gloo's messages, from and to rows on a GPU; the host waits for copies and for what is received.

    Args:
        timeout: how long a message may take before the job is given up.
    """

    def __init__(self, *, timeout: timedelta) -> None:
        self._gloo = GlooTransport(timeout=timeout)

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        """As in Transport."""
        return self._gloo.step(setup)

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        """Copy rows to the host and start sending them, by destination; as gloo's, nobody sees them arrive."""
        for peer, message in messages.items():
            self._gloo.send(transfer, {peer: Message(message.packed().cpu(), ((0, message.num_rows),))})
        return ()

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> StagedReceive:
        """Start receiving, by source; rows get to their places in ``wait``."""
        rooms = {
            peer: torch.empty(message.num_rows, message.rows.shape[1], dtype=message.rows.dtype)
            for peer, message in messages.items()
        }
        whole = {peer: Message(room, ((0, len(room)),)) for peer, room in rooms.items()}
        return StagedReceive(self._gloo.receive(transfer, whole), rooms, messages)

    def flush(self) -> None:
        """Wait until every send has left."""
        self._gloo.flush()


class StagedReceive:
    """Messages on their way to the host, and on to the device."""

    def __init__(self, receive: Receive, rooms: Mapping[int, torch.Tensor], messages: Mapping[int, Message]) -> None:
        self._receive, self._rooms, self._messages = receive, rooms, messages

    def wait(self) -> None:
        """Raises JobError: a sender is gone or late."""
        self._receive.wait()
        for peer, message in self._messages.items():
            room = message.packing()
            room.copy_(self._rooms[peer])
            message.unpack(room)
