"""Transport over NCCL's sends and receives: GPUs, of one host or of several.

NCCL has no tags: it matches by order within a communicator, and a communicator's operations run in order on one stream.
So every wire (channel, source, destination) has a communicator of its own, with two ranks and with its own stream on
either of them, made and used once before the first step. The host never waits for a peer within a step: ``send`` and
``receive`` enqueue, ``wait`` makes the current stream wait, and ``flush`` alone, at the step's end, looks at the clock.

Why it cannot deadlock once its kernels are loaded, even though a large send ends only once its receive has begun
(rendezvous) and though 1F1B, say, has no order that a rendezvous could follow:

- A wire's stream holds sends at one end and receives at the other, nothing else, in one order that the checker
  verified. A transfer waits for the one before it and, at either end, for what its lane does before its SEND or RECV.
- The compute stream waits for receives, at the action that needs them, and never for a send before ``flush``. A send
  that is not received yet therefore holds up its own wire and no action.
- So an action waits for what the checker's run lets it wait for, with as many slots as needed, and that run ends.

Two things outside of this file must hold. Loading a kernel waits for all streams of its device, unreceived sends too:
CUDA's own modules can be loaded eagerly, but a Triton kernel is loaded at its first launch, and a host that it holds
there neither goes on to its next RECV nor looks at the clock. Such a step ends only if its program also runs under
rendezvous, or messages fit NCCL's buffers; with a dead peer, NCCL's watchdog then ends the process without naming the
edge. And streams that share one of the device's queues may wait for each other, so there must be as many queues as
streams. ``prepare_environment`` asks for both, before CUDA starts. Nothing checks that the two ends of a wire agree on
a size: a mismatch, like a dead peer, is a message that does not arrive, and a JobError after the timeout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.runtime.exchange import Wire

BACKEND = "cpu:gloo,cuda:nccl"
"""For init_process_group: the ranks exchange losses and descriptions over gloo, rows and gradients over NCCL."""

_POLL_S = 5e-5
_WATCHDOG_FACTOR = 3
"""Times the timeout until NCCL's own watchdog ends the process, if nobody is left to raise."""


def prepare_environment() -> None:
    """Set what NCCL's sends need of CUDA in this process; call it before anything uses the GPU."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


@dataclass(frozen=True, slots=True)
class Pending:
    """A message of this step that had not left or arrived when last looked at.

    Args:
        work: torch's handle.
        rows: its memory, kept until then.
        wire: where it goes.
        number: how many messages of the step the wire had before it.
        is_receive: whether this rank is the destination.
    """

    work: Any
    rows: torch.Tensor
    wire: Wire
    number: int
    is_receive: bool


class NcclTransport:
    """Sends and receives that never hold the host; messages of one wire arrive in the order they were sent.

    Making one is collective: every rank of the job makes it of equal ``wires``.

    Args:
        wires: all that the job may use, those of other ranks too.
        device: this rank's GPU.
        timeout: how long a step may stand still before the job is given up.
    """

    def __init__(self, wires: Sequence[Wire], *, device: torch.device, timeout: timedelta) -> None:
        self._device, self._timeout_s = device, timeout.total_seconds()
        self._wires = {(wire.tag, wire.source, wire.destination): wire for wire in wires}
        self._groups = {
            wire: dist.new_group([wire.source, wire.destination], backend="nccl", timeout=_WATCHDOG_FACTOR * timeout)
            for wire in wires
        }
        self._numbers: dict[Wire, int] = {}
        self._pending: list[Pending] = []
        self._connect()

    def _connect(self) -> None:
        """Use each wire once, in the same order everywhere: NCCL connects at first use, and both ends wait for it."""
        rank, hello = dist.get_rank(), torch.zeros(1, device=self._device)
        for wire in self._groups:
            if rank == wire.source:
                self.send(hello, peer=wire.destination, tag=wire.tag)
            elif rank == wire.destination:
                self.receive(hello, peer=wire.source, tag=wire.tag).wait()
        self.flush()

    def send(self, rows: torch.Tensor, *, peer: int, tag: int) -> None:
        """Start sending ``rows`` (contiguous) to rank ``peer``; they must not change until ``flush``."""
        wire = self._wires[tag, dist.get_rank(), peer]
        self._post(dist.isend(rows, peer, group=self._groups[wire]), rows, wire, is_receive=False)

    def receive(self, rows: torch.Tensor, *, peer: int, tag: int) -> NcclReceive:
        """Start receiving into ``rows`` from rank ``peer``."""
        wire = self._wires[tag, peer, dist.get_rank()]
        work = dist.irecv(rows, peer, group=self._groups[wire])
        self._post(work, rows, wire, is_receive=True)
        return NcclReceive(work)

    def flush(self) -> None:
        """Wait until every message has left or arrived and the current stream has nothing left to do.

        Raises:
            JobError: nothing went on for as long as the timeout; the message names the wire that the step waits for.
        """
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        last_progress = time.monotonic()
        while True:
            pending = [message for message in self._pending if not message.work.is_completed()]
            if not pending and done.query():  # type: ignore[no-untyped-call]
                break
            if len(pending) < len(self._pending):
                last_progress = time.monotonic()
            self._pending = pending
            if time.monotonic() - last_progress > self._timeout_s:
                raise JobError(what_is_missing(pending, timeout_s=self._timeout_s))
            time.sleep(_POLL_S)
        self._pending = []
        self._numbers.clear()

    def _post(self, work: Any, rows: torch.Tensor, wire: Wire, *, is_receive: bool) -> None:
        number = self._numbers.get(wire, 0)
        self._numbers[wire] = number + 1
        # Memory that is still being sent must not go back to the allocator, which knows this stream alone.
        self._pending = [message for message in self._pending if not message.work.is_completed()]
        self._pending.append(Pending(work, rows, wire, number, is_receive))


class NcclReceive:
    """A message on its way; after ``wait`` the current stream goes on when it has arrived."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self) -> None:
        self._work.wait()


def what_is_missing(pending: Sequence[Pending], *, timeout_s: float) -> str:
    """What a step waits for that has stood still: the first receive, since no action waits for a send.

    Args:
        pending: in the order in which this rank posted them.
        timeout_s: how long nothing went on.
    """
    late = next((message for message in pending if message.is_receive), None)
    if late is not None:
        return (
            f"{late.wire.name}: message {late.number} did not arrive from rank {late.wire.source} on rank "
            f"{late.wire.destination} within {timeout_s:g} s"
        )
    if pending:
        unread = pending[0].wire
        return (
            f"{unread.name}: message {pending[0].number} was not received by rank {unread.destination} "
            f"from rank {unread.source} within {timeout_s:g} s"
        )
    return f"the GPU did not end its part of the step within {timeout_s:g} s: a rank is missing in a sum of gradients"
