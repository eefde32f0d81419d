"""NCCL's sends and receives: GPUs, of one host or of several.

NCCL has no tags: it matches by order within a communicator, and a communicator's operations run in order on one stream.
So every link has a communicator of its own, and what a SEND or RECV moves on it is one group of NCCL's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hetsched.runtime.events import Event, EventPool, OfWorks
from hetsched.runtime.exchange import Message, StepSetup, Transfer
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.memory import OwnMemory

BACKEND = "cpu:gloo,cuda:nccl"
"""For init_process_group: the ranks exchange losses and descriptions over gloo, sums of gradients over NCCL."""
_HAS_COALESCING = all(hasattr(dist.ProcessGroup, name) for name in ("_start_coalescing", "_end_coalescing"))
if not _HAS_COALESCING:
    logging.getLogger("hetsched").warning("this torch coalesces messages otherwise: each takes the host longer")
_WATCHDOG_FACTOR = 3
"""Times the timeout until NCCL's own watchdog ends the process, should nothing else have."""


class NcclCarrier(OwnMemory):
    """A communicator a link; see Carrier.

    Args:
        links: of the job.
        timeout: how long a step may stand still.
    """

    def __init__(self, links: Sequence[Link], *, timeout: timedelta) -> None:
        self._groups = {
            link: dist.new_group(list(link.ranks), backend="nccl", timeout=_WATCHDOG_FACTOR * timeout) for link in links
        }
        self._places = {link: {rank: place for place, rank in enumerate(link.ranks)} for link in links}

    def prepare(self, setup: StepSetup) -> None:
        """As in Carrier: NCCL needs no memory."""

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> NcclWork:
        """As in Carrier."""
        rows = {peer: message.packed() for peer, message in messages.items()}
        return NcclWork(self._post(link, rows, is_send=True), rows)

    def receive(self, link: Link, messages: Mapping[int, Message]) -> NcclReceive:
        """As in Carrier."""
        packed = {peer: message.packing() for peer, message in messages.items()}
        return NcclReceive(self._post(link, packed, is_send=False), packed, messages)

    def _post(self, link: Link, rows: Mapping[int, torch.Tensor], *, is_send: bool) -> Any:
        # Also a single message goes as a group: alone it would get a communicator for its pair of ranks.
        group, places = self._groups[link], self._places[link]
        if not _HAS_COALESCING:
            do = dist.isend if is_send else dist.irecv
            [work] = dist.batch_isend_irecv([dist.P2POp(do, of, peer, group) for peer, of in rows.items()])
            return work
        # What batch_isend_irecv calls, without its checks: a third less of the host's time.
        device = next(iter(rows.values())).device
        move = group.send if is_send else group.recv
        group._start_coalescing(device)
        for peer, of_peer in rows.items():
            move([of_peer], places[peer], 0)
        return group._end_coalescing(device)


@dataclass(frozen=True, slots=True)
class NcclWork:
    """One group; keeps the memory that it moves."""

    work: Any
    rows: Mapping[int, torch.Tensor]

    @property
    def is_awaited(self) -> bool:
        """As in Posted: NCCL knows by itself."""
        return True

    def is_completed(self) -> bool:
        return bool(self.work.is_completed())

    def wait(self) -> None:
        self.work.wait()

    def seen(self, aside: Any, events: EventPool) -> Event:
        """As in Arrival: a send ends with its receive."""
        return OfWorks([self.work]).seen(aside, events)


@dataclass(frozen=True, slots=True)
class NcclReceive(NcclWork):
    """A group of receives; the current stream that waits for it also puts rows in their places."""

    messages: Mapping[int, Message]

    def wait(self) -> None:
        self.work.wait()
        for peer, message in self.messages.items():
            message.unpack(self.rows[peer])
