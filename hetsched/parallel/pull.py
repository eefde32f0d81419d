"""Attention over keys that other ranks of the host hold: copy engines pull them while one kernel runs over all of them.

Every rank packs its keys and values into memory that the others can read, and tells them. Once all have, each pulls
the rows that its queries need, nearest need first, and a counter says how many copies have landed; the kernel starts at
once and waits for that counter tile by tile. Output and lse stay in registers over all keys: nothing is merged.

The kernel holds every multiprocessor while it waits, and waits only for copies of its own GPU that are enqueued before
it and need no multiprocessor. What might need one elsewhere, other ranks' packing, is over before it starts.

The packed and pulled rows of one layer stay allocated, 1.25 times as many as the largest call so far needed, which is
at most the whole sequence's keys and values. Where that is too much, force the ring: it holds one source's at a time.
"""

from __future__ import annotations

import functools
import logging
import socket
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.attention import staging
from hetsched.kernels.attention.backends import choose
from hetsched.kernels.put import library
from hetsched.kernels.put.pull import pull_runs
from hetsched.layout import pulls
from hetsched.parallel.context_task import ContextTask
from hetsched.parallel.meter import Meter

log = logging.getLogger("hetsched")
_HALF = 1 << 31
_MOST_SHAPES = 64
"""Microbatches have shapes of their own, and layers share them."""


def where_possible(task: ContextTask, *, group: dist.ProcessGroup, like: Tensor, head_dim: int) -> ContextTask:
    """The task, with keys pulled where the group's ranks can and unless it forces another way.

    All ranks that have rows call it, with tensors alike.

    Args:
        task: of the microbatch.
        group: its ranks.
        like: of the dtype and on the device of queries.
        head_dim: of queries and keys.
    """
    if 0 in task.rows_of_rank:
        # the first look at a group communicates, and a rank without rows is not called
        return task
    reason = _why_not(group, like.new_empty(0, 1, head_dim))
    _tell(reason)
    return task if reason else replace(task, heads_of_part=pulls.heads_of_part(task.num_kv_heads))


def forward(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    task: ContextTask,
    *,
    group: dist.ProcessGroup,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`hetsched.parallel.ring.forward`, for 16-bit floats; all ranks of the group call it.

    Raises:
        ValueError: inputs that the kernels for Hopper do not take.
        RuntimeError: in an earlier call some copies did not land within seconds; its output was wrong.
    """
    from hetsched.kernels.attention import hopper_pull

    if choose(q_THD) != "hopper":
        raise ValueError(f"keys of dtype {k_TKD.dtype} on {k_TKD.device} cannot be pulled; use forced='ring'")
    pulled, heads = task.pulled, task.heads_of_part
    plan = pulled.plan
    station = _station(group)
    shape = (task.num_kv_heads // heads * plan.num_rows, 2 * heads * k_TKD.shape[2])
    stages = station.open(shape, k_TKD.dtype, task.meter)
    stage = stages[task.rank].view(-1, plan.num_rows, 2, heads, k_TKD.shape[2])
    staging.fill(stage, k_TKD, v_TKD, pulled.own_places)
    landed = station.pull(stages, torch.from_numpy(plan.runs), task.meter)
    staged = hopper_pull.Staged(stage, pulled.needs, station.counter, landed, station.lost)
    result = hopper_pull.forward(q_THD, staged, pulled.attention, scale=scale)
    station.close()
    return result


class Station:
    """What one rank keeps for a group: memory that the others read, and counters of who is ready and who is done.

    Calls are numbered alike on all ranks. In each, ``open`` holds the stream until the others have read what the
    last call packed, ``pull`` until the others have packed, and ``close`` until the copies have landed.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._rank, self._size, self._device = group, group.rank(), group.size(), device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._number, self._landed, self._num_bytes = 0, 0, 0
        self._memory: tuple[Tensor, Any] | None = None
        self._stages: dict[tuple[tuple[int, int], torch.dtype], list[Tensor]] = {}
        self.counter = torch.zeros(1, dtype=torch.int32, device=device)
        # in the host's memory, so that looking at it does not wait for the GPU
        self.lost = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        # two for each rank: its call up to which it is ready, and up to which it is done with this rank's memory
        memory, self._signals_shared = self._shared(8 * self._size)
        self._signals = memory.zero_().view(torch.int32).view(self._size, 2, 1)
        buffer = self._signals_shared.get_buffer
        self._signals_at = {rank: buffer(rank, (self._size, 2, 1), torch.int32) for rank in self._others()}
        self._meet()

    def open(self, shape: tuple[int, int], dtype: torch.dtype, meter: Meter) -> list[Tensor]:
        """The stages of all ranks, alike on all of them; this rank's may now be written."""
        if int(self.lost[0]):
            raise RuntimeError("pulled keys did not arrive within seconds in an earlier call: its output was wrong")
        with meter.passage(0).waiting():
            for rank in self._others():
                library.stream_wait_value(self._signals[rank, 1], self._number)
        self._number = _wrapped(self._number + 1)
        num_bytes = shape[0] * shape[1] * dtype.itemsize
        if num_bytes > self._num_bytes:
            self._grow(num_bytes)
        key = (shape, dtype)
        if key not in self._stages:
            if len(self._stages) == _MOST_SHAPES:
                self._stages.clear()
            assert self._memory is not None
            self._stages[key] = [self._memory[1].get_buffer(rank, shape, dtype) for rank in range(self._size)]
        return self._stages[key]

    def pull(self, stages: list[Tensor], runs: Tensor, meter: Meter) -> int:
        """Starts the copies; returns what the counter is before the first of them.

        The meter is told of the rows that come here. How long the kernel waits for its tiles only the kernel knows.
        """
        stream = torch.cuda.current_stream(self._device)
        for rank in self._others():
            library.stream_write_value(self._signals_at[rank][self._rank, 0], self._number)
        passage = meter.passage(int(runs[:, -1].sum()) * stages[0][:1].nbytes)
        with passage.waiting():
            for rank in self._others():
                library.stream_wait_value(self._signals[rank, 0], self._number)
        self._copies.wait_stream(stream)
        landed, self._landed = self._landed, _wrapped(self._landed + runs.shape[0])
        with torch.cuda.stream(self._copies):
            pull_runs(stages, stages[self._rank], runs, counter=self.counter, first=_wrapped(landed + 1))
            passage.arrived()
            for rank in self._others():
                library.stream_write_value(self._signals_at[rank][self._rank, 1], self._number)
        return landed

    def close(self) -> None:
        """Before this rank's stage is written again, its copies have landed."""
        torch.cuda.current_stream(self._device).wait_stream(self._copies)

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


@functools.cache
def _station(group: dist.ProcessGroup) -> Station:
    return Station(group, torch.device("cuda", torch.cuda.current_device()))


@functools.cache
def _num_hosts(group: dist.ProcessGroup) -> int:
    names: list[Any] = [None] * group.size()
    dist.all_gather_object(names, socket.gethostname(), group=group)
    return len(set(names))


def _why_not(group: dist.ProcessGroup, like: Tensor) -> str | None:
    """Why ranks cannot pull; the same on all of them."""
    if choose(like) != "hopper":
        return "the attention kernels for Hopper do not run on these inputs"
    reason = library.missing()
    if reason is not None:
        return reason
    if _num_hosts(group) > 1:
        return "the group's ranks are on several hosts"
    return None


@functools.cache
def _tell(reason: str | None) -> None:
    """Once for each reason."""
    log.info("context attention pulls keys" if reason is None else f"context attention pulls no keys: {reason}")
