"""Transport over torch.distributed's point-to-point calls on gloo: CPU, tests, the demo."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hetsched.errors import JobError


class GlooTransport:
    """Sends and receives that never block; messages of one channel arrive in the order they were sent.

    Args:
        timeout: how long a message may take before the job is given up.
    """

    def __init__(self, *, timeout: timedelta) -> None:
        self._timeout = timeout
        self._sent: list[tuple[Any, torch.Tensor]] = []

    def send(self, rows: torch.Tensor, *, peer: int, tag: int) -> None:
        """Start sending ``rows`` (contiguous) to rank ``peer``; they must not change until ``flush``."""
        self._sent = [(work, kept) for work, kept in self._sent if not work.is_completed()]
        self._sent.append((dist.isend(rows, peer, tag=tag), rows))

    def receive(self, rows: torch.Tensor, *, peer: int, tag: int) -> GlooReceive:
        """Start receiving into ``rows`` from rank ``peer``."""
        return GlooReceive(dist.irecv(rows, peer, tag=tag), peer, self._timeout)

    def flush(self) -> None:
        """Wait until every send has left its buffer."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()


class GlooReceive:
    """A message on its way; ``wait`` returns when it has arrived."""

    def __init__(self, work: Any, peer: int, timeout: timedelta) -> None:
        self._work, self._peer, self._timeout = work, peer, timeout

    def wait(self) -> None:
        """Raises JobError: the sender is gone or late."""
        try:
            self._work.wait(self._timeout)
        except RuntimeError as error:
            raise JobError(f"nothing arrived from rank {self._peer}: {error}") from None
