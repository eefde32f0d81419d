"""Transport over torch.distributed's point-to-point calls on gloo: CPU, tests, the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.runtime.events import Arrival
from hetsched.runtime.exchange import Message, StepSetup, Transfer
from hetsched.runtime.transport.memory import OwnMemory
from hetsched.runtime.transport.pending import if_slow


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message that may not have left yet, and its memory."""

    work: Any
    rows: torch.Tensor
    transfer: Transfer
    peer: int


class GlooTransport(OwnMemory):
    """Sends and receives that never block; messages of one channel arrive in the order they were sent.

    Args:
        timeout: how long a message may take before the job is given up.
    """

    def __init__(self, *, timeout: timedelta) -> None:
        self._timeout = timeout
        self._sent: list[_Sent] = []

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        """As in Transport."""
        return nullcontext()

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        """As in Transport; whoever waits for a message sees it arrive, and nobody else."""
        self._sent = [sent for sent in self._sent if not sent.work.is_completed()]
        for peer, message in messages.items():
            rows = message.packed()
            self._sent.append(_Sent(dist.isend(rows, peer, tag=transfer.channel.tag), rows, transfer, peer))
        return ()

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> GlooReceive:
        """Start receiving, by source; what is not one run gets to its places in ``wait``."""
        arriving = []
        for peer, message in messages.items():
            room = message.packing()
            arriving.append(_Arriving(dist.irecv(room, peer, tag=transfer.channel.tag), room, message, peer))
        return GlooReceive(arriving, transfer, self._timeout)

    def flush(self) -> None:
        """Wait until every send has left its buffer. Raises JobError: a receiver is gone or late."""
        for sent in self._sent:
            try:
                sent.work.wait(self._timeout)
            except RuntimeError as error:
                ends = f"rank {sent.peer} did not receive from rank {dist.get_rank()}"
                raise JobError(f"{sent.transfer}: {ends}: {error}") from None
        self._sent.clear()


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A message on its way into ``room``."""

    work: Any
    room: torch.Tensor
    message: Message
    peer: int


class GlooReceive:
    """Messages on their way; ``wait`` returns when they are in their places."""

    def __init__(self, arriving: Sequence[_Arriving], transfer: Transfer, timeout: timedelta) -> None:
        self._arriving, self._transfer, self._timeout = arriving, transfer, timeout

    def wait(self) -> None:
        """Raises JobError: a sender is gone or late."""
        for a in self._arriving:
            try:
                a.work.wait(self._timeout)
            except RuntimeError as error:
                message = f"{self._transfer}: nothing arrived from rank {a.peer} on rank {dist.get_rank()}: {error}"
                is_late = "Timed out" in str(error)
                raise JobError(f"{message}; {if_slow(f'rank {a.peer}')}" if is_late else message) from None
            a.message.unpack(a.room)
