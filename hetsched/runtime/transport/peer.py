"""Transport between GPUs of one host: copy engines write rows into the receiver's memory; no SM and no host waits.

Every process owns one arena of symmetric memory. A wire, all messages of one tag from one rank to another, has a
ring of slots in its receiver's arena and two counters that only grow: messages arrived, beside the slots, and
messages taken, in the sender's arena. Streams wait for the counters; the watchdog bounds how long.

CUDA does not know what a stream waits for on another GPU. So every wire sends on a stream of its own, puts are enqueued
before the waits that depend on them (the order of a checked program), and streams must not share one hardware queue.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from hetsched.errors import JobError
from hetsched.kernels.put import library
from hetsched.runtime.transport.watchdog import Watchdog

# Counters lie in cache lines of their own; slots are aligned to the widest access.
_LINE = 128


@dataclass(frozen=True, order=True)
class Wire:
    """All messages of one tag from one rank to another.

    Args:
        tag: of the channel.
        source, destination: ranks.
        num_slots: messages that may be on their way at once.
        slot_bytes: of the largest message.
    """

    tag: int
    source: int
    destination: int
    num_slots: int
    slot_bytes: int


@dataclass(frozen=True)
class Place:
    """Where a wire lives: byte offsets of slots and arrival counter at its receiver, of the credit at its sender."""

    slots: int
    arrived: int
    taken: int


def place_wires(wires: Sequence[Wire]) -> tuple[dict[Wire, Place], int]:
    """Places for all wires, and the bytes of an arena that is large enough for every rank.

    Args:
        wires: equal on every rank, in any order.
    """
    used: dict[int, int] = defaultdict(int)

    def take(rank: int, num_bytes: int) -> int:
        offset = used[rank]
        used[rank] += -(-num_bytes // _LINE) * _LINE
        return offset

    places = {}
    for wire in sorted(wires):
        arrived, taken = take(wire.destination, 4), take(wire.source, 4)
        slots = take(wire.destination, wire.num_slots * slot_stride(wire))
        places[wire] = Place(slots=slots, arrived=arrived, taken=taken)
    return places, max(used.values(), default=_LINE)


def slot_stride(wire: Wire) -> int:
    return -(-wire.slot_bytes // _LINE) * _LINE


def check_queues() -> None:
    """Raises JobError: streams share one hardware queue, where one that waits can block the put it waits for."""
    if os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1":
        raise JobError(
            "CUDA_DEVICE_MAX_CONNECTIONS=1 puts all streams of a GPU into one queue, where a wait for a peer blocks"
            " the rows that the peer waits for; unset it or choose another transport"
        )


class PeerTransport:
    """Sends and receives between the GPUs of one host; all of it is enqueued, nothing blocks the host.

    Making one is collective over the group.

    Args:
        wires: every wire of the group, equal on every rank; at most 32 leave one rank.
        group: the ranks of this host.
        device: this rank's GPU.
        timeout: how long a message may keep a stream waiting before the process ends with a report.

    Raises:
        JobError: the compiled library is missing, or the hardware queues are too few.
        ValueError: too many wires leave this rank.
    """

    def __init__(
        self, wires: Sequence[Wire], *, group: dist.ProcessGroup, device: torch.device, timeout: timedelta
    ) -> None:
        reason = library.missing()
        if reason is not None:
            raise JobError(f"the peer transport cannot start: {reason}")
        check_queues()
        rank = dist.get_rank()
        if sum(wire.source == rank for wire in wires) > 32:
            raise ValueError(f"more than 32 wires leave rank {rank}, and torch has 32 streams to send them on")
        places, arena_bytes = place_wires(wires)
        self._arena = symmetric_memory.empty(arena_bytes, dtype=torch.uint8, device=device)
        self._arena.zero_()
        handle = symmetric_memory.rendezvous(self._arena, group)
        torch.cuda.synchronize(device)
        dist.barrier(group)
        self._watchdog = Watchdog(timeout=timeout, rank=rank)
        self._outgoing: dict[tuple[int, int], Outgoing] = {}
        self._incoming: dict[tuple[int, int], Incoming] = {}
        for wire, place in places.items():
            if rank not in (wire.source, wire.destination):
                continue
            peer = wire.destination if wire.source == rank else wire.source
            theirs = handle.get_buffer(dist.get_group_rank(group, peer), (arena_bytes,), torch.uint8)
            if wire.source == rank:
                ends = End(wire, place, at_receiver=theirs, at_sender=self._arena)
                self._outgoing[wire.tag, peer] = Outgoing(ends, self._watchdog)
            else:
                ends = End(wire, place, at_receiver=self._arena, at_sender=theirs)
                self._incoming[wire.tag, peer] = Incoming(ends, self._watchdog)

    def send(self, rows: Tensor, *, peer: int, tag: int) -> None:
        """Start sending ``rows`` (contiguous ``[n, hidden]``); they must not change until ``flush``."""
        self.send_runs(rows, [(0, rows.shape[0])], peer=peer, tag=tag)

    def send_runs(self, rows: Tensor, runs: Sequence[tuple[int, int]], *, peer: int, tag: int) -> None:
        """Start sending runs (first row, number of rows) of ``rows``, one after the other, as one message.

        They go from where they lie, without being packed first; they must not change until ``flush``.
        """
        self._outgoing[tag, peer].send(rows, runs)

    def receive(self, rows: Tensor, *, peer: int, tag: int) -> PeerReceive:
        """The next message of a wire, to be copied into ``rows`` (contiguous) by the stream that waits for it."""
        incoming = self._incoming[tag, peer]
        return PeerReceive(incoming, incoming.next_message(), rows)

    def flush(self) -> None:
        """Make the current stream wait until every send has left its buffer."""
        for outgoing in self._outgoing.values():
            torch.cuda.current_stream().wait_stream(outgoing.stream)

    def close(self) -> None:
        """Wait for all work and stop watching it; to be called on every rank before the group ends."""
        torch.cuda.synchronize(self._arena.device)
        self._watchdog.close()


class End:
    """A wire's slots and counters as one of its ranks sees them."""

    def __init__(self, wire: Wire, place: Place, *, at_receiver: Tensor, at_sender: Tensor) -> None:
        self.wire = wire
        stride = slot_stride(wire)
        starts = [place.slots + number * stride for number in range(wire.num_slots)]
        self.slots = [at_receiver[start : start + wire.slot_bytes] for start in starts]
        self.arrived = at_receiver[place.arrived : place.arrived + 4].view(torch.int32)
        self.taken = at_sender[place.taken : place.taken + 4].view(torch.int32)

    def slot_of(self, message: int, num_rows: int, like: Tensor) -> Tensor:
        """``[num_rows, hidden]`` in the slot of a message."""
        num_bytes = num_rows * like.shape[1] * like.element_size()
        if num_bytes > self.wire.slot_bytes:
            raise ValueError(f"a message of {num_bytes} bytes does not fit a slot of {self.wire}")
        return self.slots[message % self.wire.num_slots][:num_bytes].view(like.dtype).view(num_rows, like.shape[1])


class Outgoing:
    """The sending end of a wire."""

    def __init__(self, end: End, watchdog: Watchdog) -> None:
        self._end, self._watchdog = end, watchdog
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._num_sent = 0

    def send(self, rows: Tensor, runs: Sequence[tuple[int, int]]) -> None:
        table, num_rows = [], 0
        for row, count in runs:
            table.append((row, 0, num_rows, count))
            num_rows += count
        slot = self._end.slot_of(self._num_sent, num_rows, rows)
        self.stream.wait_stream(torch.cuda.current_stream())
        rows.record_stream(self.stream)
        with torch.cuda.stream(self.stream):
            self._await_credit()
            library.copy_runs(rows, torch.tensor(table), [slot], is_batched=len(table) > 1)
            self._num_sent += 1
            library.stream_write_value(self._end.arrived, self._num_sent)

    def _await_credit(self) -> None:
        wire = self._end.wire
        num_taken = self._num_sent - wire.num_slots + 1
        if num_taken > 0:
            library.stream_wait_value(self._end.taken, num_taken)
            what = f"rank {wire.destination} has not taken message {num_taken - 1} of edge {wire.tag}"
            self._watchdog.watch(what)


class Incoming:
    """The receiving end of a wire."""

    def __init__(self, end: End, watchdog: Watchdog) -> None:
        self._end, self._watchdog = end, watchdog
        self._num_posted = 0

    def next_message(self) -> int:
        self._num_posted += 1
        return self._num_posted - 1

    def take(self, message: int, rows: Tensor) -> None:
        """Copy a message out of its slot and hand the slot back; messages are taken in order."""
        wire = self._end.wire
        library.stream_wait_value(self._end.arrived, message + 1)
        self._watchdog.watch(f"nothing arrived from rank {wire.source}: message {message} of edge {wire.tag}")
        rows.copy_(self._end.slot_of(message, rows.shape[0], rows))
        library.stream_write_value(self._end.taken, message + 1)


class PeerReceive:
    """A message on its way; ``wait`` makes the current stream wait for it."""

    def __init__(self, incoming: Incoming, message: int, rows: Tensor) -> None:
        self._incoming, self._message, self._rows = incoming, message, rows

    def wait(self) -> None:
        self._incoming.take(self._message, self._rows)
