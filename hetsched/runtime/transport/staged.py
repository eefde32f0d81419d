"""Rows of GPUs carried through the memory of their hosts: slow, but nothing waits on a device for a peer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta

import torch

from hetsched.runtime.exchange import Receive, Transfer
from hetsched.runtime.transport.gloo import GlooTransport


class StagedTransport:
    """Gloo's messages, from and to rows on a GPU; the host waits for copies and for what is received.

    Args:
        timeout: how long a message may take before the job is given up.
    """

    def __init__(self, *, timeout: timedelta) -> None:
        self._gloo = GlooTransport(timeout=timeout)

    def step(self, *, may_load_kernels: bool) -> AbstractContextManager[None]:
        """As in Transport."""
        return self._gloo.step(may_load_kernels=may_load_kernels)

    def send(self, transfer: Transfer, messages: Mapping[int, torch.Tensor]) -> None:
        """Copy rows to the host and start sending them, by destination."""
        self._gloo.send(transfer, {peer: rows.cpu() for peer, rows in messages.items()})

    def receive(self, transfer: Transfer, buffers: Mapping[int, torch.Tensor]) -> StagedReceive:
        """Start receiving, by source; the buffers are filled by ``wait``."""
        arriving = {peer: torch.empty_like(rows, device="cpu") for peer, rows in buffers.items()}
        return StagedReceive(self._gloo.receive(transfer, arriving), arriving, buffers)

    def flush(self) -> None:
        """Wait until every send has left."""
        self._gloo.flush()


class StagedReceive:
    """Messages on their way to the host, and on to the device."""

    def __init__(
        self, receive: Receive, arriving: Mapping[int, torch.Tensor], buffers: Mapping[int, torch.Tensor]
    ) -> None:
        self._receive, self._arriving, self._buffers = receive, arriving, buffers

    def wait(self) -> None:
        """Raises JobError: a sender is gone or late."""
        self._receive.wait()
        for peer, rows in self._arriving.items():
            self._buffers[peer].copy_(rows)
