"""Memory and counters by which the ranks of a host read each other's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.put import counters
from hetsched.kernels.put.counters import Counter
from hetsched.kernels.put.pull import pull_runs
from hetsched.parallel.meter import UNMEASURED, Meter

_HALF = 1 << 31
_MOST_SHAPES = 64
"""Microbatches have shapes of their own, and layers share them."""
_ALIGNMENT = 256

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Pull:
    """Copies into one stage.

    Args:
        stages: of all ranks, ``[rows, columns]``.
        runs: int64 ``[num_runs, 4]`` on the host, see :func:`hetsched.kernels.put.pull.pull_runs`.
    """

    stages: list[Tensor]
    runs: Tensor

    @property
    def num_bytes(self) -> int:
        """That come here."""
        return int(self.runs[:, 3].sum()) * self.stages[0].shape[1] * self.stages[0].element_size()


class Station:
    """What one rank keeps for a group: memory that the others read, and counters of who is ready and who is done.

    Calls are numbered alike on all ranks. In each, ``open`` holds the stream until the others have read what the
    last call packed, ``pull`` until the others have packed, ``join`` until the copies have landed; ``close`` ends it.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._rank, self._size, self._device = group, group.rank(), group.size(), device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._passage = UNMEASURED.passage(0)
        self._closed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._number, self._landed, self._num_bytes = 0, 0, 0
        # own memory as a whole, for as long as the others may read it
        self._memory: tuple[Tensor, Any] | None = None
        self._stages: dict[tuple[tuple[Shape, ...], torch.dtype], list[list[Tensor]]] = {}
        self.counter = torch.zeros(1, dtype=torch.int32, device=device)
        # in the host's memory, so that looking at it does not wait for the GPU
        self.lost = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        # two for each rank: its call up to which it is ready, and up to which it is done with this rank's memory
        memory, self._signals_shared = self._shared(8 * self._size)
        signals = memory.zero_().view(torch.int32).view(self._size, 2, 1)
        self._signals = [[Counter(signals[rank, signal]) for rank in self._others()] for signal in range(2)]
        buffer = self._signals_shared.get_buffer
        of_others = [buffer(rank, (self._size, 2, 1), torch.int32)[self._rank] for rank in self._others()]
        self._signals_at = [[Counter(of[signal]) for of in of_others] for signal in range(2)]
        # loaded here: a kernel is loaded when no stream waits
        counters.wait_for_counts([Counter(self.counter)], [0])
        self._meet()

    def open(self, shapes: Sequence[Shape], dtype: torch.dtype, meter: Meter) -> list[list[Tensor]]:
        """For each shape the stages of all ranks, alike on all of them; this rank's may now be written."""
        if int(self.lost[0]):
            raise RuntimeError("pulled rows did not arrive within seconds in an earlier call: its results were wrong")
        # the last call may have been on another stream
        torch.cuda.current_stream(self._device).wait_event(self._closed)
        with meter.passage(0).waiting():
            self._await(1)
        self._number = _wrapped(self._number + 1)
        key = (tuple(shapes), dtype)
        if key not in self._stages:
            sizes = [-(-rows * columns * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for rows, columns in shapes]
            if sum(sizes) > self._num_bytes:
                self._grow(sum(sizes))
            if len(self._stages) == _MOST_SHAPES:
                self._stages.clear()
            offsets = [offset // dtype.itemsize for offset in accumulate(sizes, initial=0)]
            self._stages[key] = [self._views(*of, dtype) for of in zip(shapes, offsets, strict=False)]
        return self._stages[key]

    def pull(self, pulls: Sequence[Pull], meter: Meter) -> int:
        """Starts the copies, one pull's after the other's; returns what the counter is before the first of them.

        The meter is told of all of them as one. How long a kernel waits for its tiles only the kernel knows.
        """
        stream = torch.cuda.current_stream(self._device)
        for signal in self._signals_at[0]:
            counters.stream_write_value(signal, self._number)
        passage = self._passage = meter.passage(sum(of.num_bytes for of in pulls))
        with passage.waiting():
            self._await(0)
        self._copies.wait_stream(stream)
        landed = self._landed
        with torch.cuda.stream(self._copies):
            for of in pulls:
                first = _wrapped(self._landed + 1)
                pull_runs(of.stages, of.stages[self._rank], of.runs, counter=self.counter, first=first)
                self._landed = _wrapped(self._landed + of.runs.shape[0])
            passage.arrived()
            for signal in self._signals_at[1]:
                counters.stream_write_value(signal, self._number)
        return landed

    def join(self) -> None:
        """What is enqueued from here on finds all copies landed."""
        with self._passage.waiting():
            torch.cuda.current_stream(self._device).wait_stream(self._copies)

    def close(self) -> None:
        """Ends the call: before this rank's stages are written again its copies have landed, and its kernels ended."""
        self.join()
        self._closed.record(torch.cuda.current_stream(self._device))

    def _await(self, signal: int) -> None:
        """Hold the stream until all others have signaled that they are ready (0) or done (1), in this call."""
        if awaited := self._signals[signal]:
            counters.wait_for_counts(awaited, [self._number] * len(awaited))

    def _views(self, shape: Shape, offset: int, dtype: torch.dtype) -> list[Tensor]:
        assert self._memory is not None
        return [self._memory[1].get_buffer(rank, shape, dtype, offset) for rank in range(self._size)]

    def _others(self) -> list[int]:
        return [(self._rank + i) % self._size for i in range(1, self._size)]

    def _grow(self, num_bytes: int) -> None:
        # all ranks come here in the same call: the stages of the last one are no longer read once all have met
        self._meet()
        self._stages.clear()
        self._memory, self._num_bytes = None, num_bytes + num_bytes // 4
        self._memory = self._shared(self._num_bytes)
        self._memory[0].zero_()
        self._meet()

    def _shared(self, num_bytes: int) -> tuple[Tensor, Any]:
        from torch.distributed import _symmetric_memory as symmetric

        memory = symmetric.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return memory, symmetric.rendezvous(memory, self._group)

    def _meet(self) -> None:
        # this stream only: on others there may be messages that wait for what is enqueued later
        stream = torch.cuda.current_stream(self._device)
        stream.synchronize()
        dist.barrier(self._group)
        stream.synchronize()


def _wrapped(count: int) -> int:
    """As a signed 32-bit number."""
    return (count + _HALF) % (2 * _HALF) - _HALF
