"""Rows carried by what each pair of ranks has: each other's memory within a host, NCCL between hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from hetsched.runtime.exchange import Message, StepSetup, Transfer
from hetsched.runtime.transport.links import Link, is_within_host
from hetsched.runtime.transport.memory import MemoryOfAnother
from hetsched.runtime.transport.nccl import NcclCarrier
from hetsched.runtime.transport.peer import Neighbors, PeerCarrier
from hetsched.runtime.transport.streamed import Receiving, Sending


class ByHostCarrier(MemoryOfAnother):
    """Peer memory on links within a host and NCCL on those between hosts; see Carrier.

    What comes from ranks of both kinds shares a room: NCCL also receives where the rows are read. It may, because a
    room is given back before the RECV that takes it next in its rank's list, and NCCL waits for what that rank enqueued
    before.

    Args:
        links: of the job; the wires of each are all within hosts, or all between them.
        hosts: of each rank.
        device: this rank's GPU.

    Raises:
        JobError: as by PeerCarrier and NcclCarrier.
    """

    def __init__(self, links: Sequence[Link], *, hosts: Sequence[str], device: torch.device) -> None:
        self._is_near = {link: is_within_host(link.wires[0], hosts) for link in links}
        near, far = ([link for link in links if self._is_near[link] == side] for side in (True, False))
        self._near = PeerCarrier(near, device=device, neighbors=_neighbors(hosts))
        super().__init__(self._near)
        self._far = NcclCarrier(far, device=device)

    def prepare(self, setup: StepSetup) -> None:
        """As in Carrier."""
        self._near.prepare(setup)
        self._far.prepare(setup)

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> Sending:
        """As in Carrier."""
        return (self._near if self._is_near[link] else self._far).send(link, transfer, messages)

    def receive(self, link: Link, messages: Mapping[int, Message]) -> Receiving:
        """As in Carrier."""
        return (self._near if self._is_near[link] else self._far).receive(link, messages)


def _neighbors(hosts: Sequence[str]) -> Neighbors:
    """The ranks of this host; collective, as every rank makes the groups of all hosts."""
    every = [Neighbors.of([rank for rank, of in enumerate(hosts) if of == host]) for host in dict.fromkeys(hosts)]
    return next(neighbors for neighbors in every if dist.get_rank() in neighbors.ranks)
