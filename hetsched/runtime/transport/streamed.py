"""Transports between GPUs whose messages are enqueued on streams: what NCCL and peer have in common.

The host never waits for a peer within a step: ``send`` and ``receive`` enqueue, ``wait`` makes the current stream wait,
and ``flush`` alone, at the step's end, looks at the clock. A *carrier* has for each link (a channel between two lanes,
see links.py) one stream on each of its ranks, or at the sending end only; what a SEND or RECV moves on a link waits for
what the current stream was given before, and for what the link was given before.

Why it cannot deadlock, even though a send ends only once its receive has begun (rendezvous) or an earlier room was
given back, and though 1F1B, say, has no order that a rendezvous could follow. Suppose that steps stand still, and take
of the actions that wait the one that comes first in the run that the checker made; it waits for receive k of some link.
(Signals that a microbatch is given up are messages like others: nothing waits for them in that run.)

- All that precedes it in that run has gone on: on the receiving lane what is before RECV k in the list, on the
  sending lane what is before SEND k. So on every rank of the link, messages up to k are posted and wait for no action:
  the rooms that they need were given back before their RECV in the receiving lane's list (rooms.py).
- At one rank a link's messages are all sends or all receives, in the one order that the checker verified for both. So
  they end one after the other, and k arrives.
- The compute stream waits for receives, at the action that needs them, and never for a send before ``flush``.

Two things must hold besides. Loading a kernel waits for all streams of its device, messages under way included, and a
host that it holds posts nothing that would end them: so a step that may load kernels carries its messages through the
hosts (staged.py), and a host that is held all the same is ended by the watchdog. And streams that share one of the
device's queues may wait for each other, so there must be as many queues as streams: ``check_queues``. Nothing checks
that the two ends of a wire agree on a size: a mismatch, like a dead peer, is a message that does not arrive.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.runtime.arriving import Receive
from hetsched.runtime.events import Arrival
from hetsched.runtime.exchange import Channel, Lender, Message, StepSetup, Transfer
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.pending import PendingMessages, Posted, what_is_missing
from hetsched.runtime.transport.staged import StagedTransport
from hetsched.runtime.watchdog import Watchdog

_POLL_S = 5e-5
_LOADING_FACTOR = 5
"""Times the timeout that a message may take in a step that compiles and loads kernels."""
_HELD_FACTOR = 1.25
"""Times the timeout until the watchdog ends a process whose own thread has not raised by then."""
_MOST_QUEUES = 32
_OTHER_STREAMS = 6
"""Streams of a rank besides the links': work, the clock's, the row kernels' second one, copies, sums, rings of keys."""
_ASK_S = 1.0


def prepare_environment() -> None:
    """Set what waiting streams need of CUDA in this process; call it before anything uses the GPU."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(_MOST_QUEUES))


def check_queues(links: Sequence[Link], *, num_queues: int, of_senders: Collection[Link] = ()) -> str | None:
    """Why a rank's streams would wait for each other; None if each has a queue of its own.

    Args:
        links: of the whole job.
        num_queues: what CUDA_DEVICE_MAX_CONNECTIONS says.
        of_senders: those of them that have a stream at the ranks that send on them alone.
    """
    counts: dict[int, int] = defaultdict(int)
    for link in links:
        for rank in {wire.source for wire in link.wires} if link in of_senders else link.ranks:
            counts[rank] += 1
    rank = max(counts, key=lambda r: counts[r], default=0)
    needed = counts.get(rank, 0) + _OTHER_STREAMS
    if needed <= num_queues:
        return None
    return (
        f"rank {rank} has streams of {counts[rank]} links and {_OTHER_STREAMS} other streams, "
        f"but CUDA_DEVICE_MAX_CONNECTIONS is {num_queues}: a stream that shares a queue may wait for a message that is "
        "queued behind it"
    )


class Sending(Posted, Arrival, Protocol):
    """Messages that are sent, and their arrival."""


class Receiving(Posted, Protocol):
    """Messages that are received."""

    def wait(self) -> Arrival | None:
        """Make the current stream wait for them, and put rows that came in their places; returns as in Receive."""


class Carrier(Lender, Protocol):
    """How messages of a link move; making one is collective."""

    def prepare(self, setup: StepSetup) -> None:
        """Make memory for a step's messages, take back what the last used; collective, while none is on its way."""

    def send(self, link: Link, transfer: Transfer, messages: Mapping[int, Message]) -> Sending: ...

    def receive(self, link: Link, messages: Mapping[int, Message]) -> Receiving: ...


class StreamedTransport:
    """Sends and receives that never hold the host; messages of one link arrive in the order they were sent.

    Making one is collective: every rank of the job makes it of equal ``links``.

    Args:
        carrier: moves the messages.
        links: all that the job may use, those of other ranks too.
        device: this rank's GPU.
        timeout: how long a step may stand still before the job is given up; longer if it may load kernels.
    """

    def __init__(self, carrier: Carrier, links: Sequence[Link], *, device: torch.device, timeout: timedelta) -> None:
        self._carrier, self._rank, self._timeout_s = carrier, dist.get_rank(), timeout.total_seconds()
        # As in Lender; asked for every message, and the same whether the step is staged.
        self.lends = carrier.lends
        self._link_of = {(w.tag, w.source, w.destination): link for link in links for w in link.wires}
        self._pending = PendingMessages()
        self._staged = StagedTransport(timeout=_LOADING_FACTOR * timeout)
        self.is_staged = False
        self._watchdog = Watchdog(limit_s=_HELD_FACTOR * self._timeout_s, missing=self._what_is_missing)
        self._connect(links, device)

    def _connect(self, links: Sequence[Link], device: torch.device) -> None:
        """Use each wire once, in the same order everywhere: what a carrier does at first use is then done."""
        hello = torch.zeros(1, 1, device=device)
        self._carrier.prepare(StepSetup())
        for link in links:
            first = link.wires[0]
            transfer = Transfer(Channel(first.tag, 1, hello.dtype, first.name, is_signal=True), 0)
            out = {w.destination: Message(hello, ((0, 1),)) for w in link.wires if w.source == self._rank}
            into = {
                w.source: Message(torch.zeros_like(hello), ((0, 1),)) for w in link.wires if w.destination == self._rank
            }
            if out:
                self.send(transfer, out)
            if into:
                self.receive(transfer, into).wait()
        self.flush()

    @contextmanager
    def step(self, setup: StepSetup) -> Iterator[None]:
        """As in Transport: a step that may load kernels has its messages carried by the hosts."""
        self.is_staged, self._pending = setup.may_load_kernels, PendingMessages()
        if not self.is_staged:
            self._carrier.prepare(setup)
        with self._watchdog.watching(patience=_LOADING_FACTOR if self.is_staged else 1):
            yield

    def room(self, transfer: Transfer, num_rows: int) -> torch.Tensor | None:
        """As in Lender."""
        return None if self.is_staged else self._carrier.room(transfer, num_rows)

    def give_back(self, transfer: Transfer) -> None:
        """As in Lender."""
        if not self.is_staged:
            self._carrier.give_back(transfer)

    def send(self, transfer: Transfer, messages: Mapping[int, Message]) -> Sequence[Arrival]:
        """As in Transport."""
        self._watchdog.progress()
        if self.is_staged:
            return self._staged.send(transfer, messages)
        arrivals: list[Arrival] = []
        for link, part in self._by_link(transfer, messages, is_receive=False):
            work = self._carrier.send(link, transfer, part)
            self._pending.add(link, work, part, transfer, is_receive=False)
            arrivals.append(work)
        return arrivals

    def receive(self, transfer: Transfer, messages: Mapping[int, Message]) -> Receive:
        """Start receiving rows to their places, by source; ``wait`` makes the current stream wait for them."""
        self._watchdog.progress()
        if self.is_staged:
            return self._staged.receive(transfer, messages)
        works = []
        for link, part in self._by_link(transfer, messages, is_receive=True):
            works.append(self._carrier.receive(link, part))
            self._pending.add(link, works[-1], part, transfer, is_receive=True)
        return works[0] if len(works) == 1 else StreamedReceive(works)

    def flush(self) -> None:
        """Wait until every message has left or arrived and the current stream has nothing left to do.

        Raises:
            JobError: nothing went on for as long as the timeout; the message names what the step waits for.
        """
        self._staged.flush()
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        last_progress = time.monotonic()
        while True:
            before = len(self._pending)
            self._pending.look()
            if not self._pending and done.query():  # type: ignore[no-untyped-call]
                return
            if len(self._pending) < before:
                last_progress = time.monotonic()
                self._watchdog.progress()
            if time.monotonic() - last_progress > self._timeout_s:
                raise JobError(self._what_is_pending())
            time.sleep(_POLL_S)

    def _by_link(
        self, transfer: Transfer, messages: Mapping[int, Message], *, is_receive: bool
    ) -> Sequence[tuple[Link, Mapping[int, Message]]]:
        tag, rank = transfer.channel.tag, self._rank
        links = [self._link_of[(tag, peer, rank) if is_receive else (tag, rank, peer)] for peer in messages]
        if len(links) == 1:
            return [(links[0], messages)]
        of_link: dict[Link, dict[int, Message]] = defaultdict(dict)
        for link, (peer, message) in zip(links, messages.items(), strict=True):
            of_link[link][peer] = message
        return list(of_link.items())

    def _what_is_missing(self) -> str:
        # Asking CUDA may hold this thread as well; then what was pending when last looked at has to do.
        look = threading.Thread(target=self._pending.look, daemon=True)
        look.start()
        look.join(_ASK_S)
        return self._what_is_pending()

    def _what_is_pending(self) -> str:
        return what_is_missing(self._pending.in_order(), rank=self._rank, timeout_s=self._timeout_s)


class StreamedReceive:
    """Messages of several links; after ``wait`` the current stream goes on when they have arrived."""

    def __init__(self, works: Sequence[Receiving]) -> None:
        self._works = works

    def wait(self) -> Arrival | None:
        """As in Receive."""
        seen = [work.wait() for work in self._works]
        # The current stream waits for one after the other.
        return seen[-1]
