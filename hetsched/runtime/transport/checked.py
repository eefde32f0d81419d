"""Debugging: every message is announced, and a receiver compares what was sent with what it expects.

The announcements go over gloo whatever carries the rows, on channels of their own. Rows are received only once
they were found to be the expected ones, so that a mismatch ends in an error and not in wrong gradients or a crash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.runtime.arriving import Receive
from hetsched.runtime.events import Arrival
from hetsched.runtime.exchange import Message, StepSetup, Transfer, Transport
from hetsched.runtime.transport.gloo import GlooTransport
from hetsched.runtime.transport.memory import MemoryOfAnother

_FIELDS = ("the channel", "the microbatch", "the rows", "their width", "the dtype", "the digest of the step")
_FIRST_TAG = 1 << 20
"""Tags of announcements: those of channels are below."""
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8)


class CheckedTransport(MemoryOfAnother):
    """A transport whose messages are announced and compared; the host waits for each, so it is slow.

    Args:
        transport: carries the rows.
        timeout: how long an announcement may take before the job is given up.
    """

    def __init__(self, transport: Transport, *, timeout: timedelta) -> None:
        super().__init__(transport)
        self._transport = transport
        self._gloo = GlooTransport(timeout=timeout)
        self._pending: dict[int, deque[CheckedReceive]] = {}
        self._digest = 0

    def step(self, setup: StepSetup) -> AbstractContextManager[None]:
        """As in Transport."""
        self._digest = setup.digest
        return self._transport.step(setup)

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        """Announce the rows and start sending them, by destination."""
        headers = {peer: self.header(transfer, message)[None] for peer, message in messages.items()}
        self._gloo.send(_announced(transfer), {peer: Message(header, ((0, 1),)) for peer, header in headers.items()})
        return self._transport.send(transfer, messages)

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> CheckedReceive:
        """Start receiving the announcements, by source; the rows follow when they are waited for."""
        headers = {peer: torch.empty(1, len(_FIELDS), dtype=torch.int64) for peer in messages}
        announcements = {peer: Message(header, ((0, 1),)) for peer, header in headers.items()}
        arriving = self._gloo.receive(_announced(transfer), announcements)
        queue = self._pending.setdefault(transfer.channel.tag, deque())
        queue.append(CheckedReceive(self, transfer, messages, headers=headers, arriving=arriving, queue=queue))
        return queue[-1]

    def flush(self) -> None:
        """Wait until every message of the step has left or arrived."""
        self._gloo.flush()
        self._transport.flush()

    def header(self, transfer: Transfer, message: Message) -> torch.Tensor:
        """What is announced of a message, by ``_FIELDS``."""
        channel = transfer.channel
        # Signals are alike and only counted.
        microbatch = -1 if channel.is_signal else transfer.microbatch
        rows = message.rows
        shape = message.num_rows, rows.shape[1]
        return torch.tensor([channel.tag, microbatch, *shape, _DTYPES.index(rows.dtype), self._digest])

    def receive_rows(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive:
        """Start receiving what was announced."""
        return self._transport.receive(transfer, messages)


class CheckedReceive:
    """Messages that are announced first."""

    def __init__(
        self,
        transport: CheckedTransport,
        transfer: Transfer,
        messages: Mapping[int, Message],
        *,
        headers: Mapping[int, torch.Tensor],
        arriving: Receive,
        queue: deque[CheckedReceive],
    ) -> None:
        self._transport, self._transfer, self._messages = transport, transfer, messages
        self._headers, self._arriving, self._queue = headers, arriving, queue
        self._rows: Receive | None = None

    def wait(self) -> Arrival | None:
        """As in Receive. Raises JobError: a sender is gone or late, or what it sent is not what is expected here."""
        # Rows come in the order in which they were announced.
        while self._rows is None:
            self._queue.popleft().accept()
        return self._rows.wait()

    def accept(self) -> None:
        """Compare the announcements, and start receiving the rows."""
        self._arriving.wait()
        for peer, header in self._headers.items():
            expected = self._transport.header(self._transfer, self._messages[peer])
            for field, sent, wanted in zip(_FIELDS, header[0].tolist(), expected.tolist(), strict=True):
                if sent != wanted:
                    raise JobError(
                        f"{self._transfer}: rank {peer} sent and rank {dist.get_rank()} expects something else: "
                        f"{field} is {sent} there and {wanted} here"
                    )
        self._rows = self._transport.receive_rows(self._transfer, self._messages)


def _announced(transfer: Transfer) -> Transfer:
    """The same transfer on the channel of announcements."""
    channel = transfer.channel
    name = f"the announcement of {channel.name}"
    return replace(transfer, channel=replace(channel, tag=_FIRST_TAG + channel.tag, name=name))
