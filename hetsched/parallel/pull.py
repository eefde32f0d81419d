"""Attention over keys that other ranks of the host hold: copy engines pull them while one kernel runs over all of them.

Every rank packs its keys and values into memory that the others can read, and tells them. Once all have, each pulls
the rows that its queries need, nearest need first, and a counter says how many copies have landed; the kernel starts at
once and waits for that counter tile by tile. Output and lse stay in registers over all keys: nothing is merged.

Backward, keys are pulled once more for the kernel that makes dq, and behind them, while it runs, the queries of other
ranks that see this rank's keys, with the gradient of their output, lse and delta. The kernel that makes dk and dv then
has all of its rows here. No partial sum travels, and every sum is made in one fixed order.

Only documents that are cut are packed. The kernel holds every multiprocessor while it waits, and waits only for copies
of its own GPU that are enqueued before it and need no multiprocessor. What might need one elsewhere, other ranks'
packing, is over before it starts.

The packed and pulled rows of one layer stay allocated, 1.25 times as many as the largest call so far needed, which is
at most the whole sequence's keys and values and, backward, queries and gradients. Where that is too much, force the
ring: it holds one source's at a time.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.attention import staging
from hetsched.kernels.attention.attend import row_delta
from hetsched.kernels.attention.backends import choose
from hetsched.kernels.put import library
from hetsched.layout import pulls
from hetsched.parallel import symmetric
from hetsched.parallel.context_task import ContextTask
from hetsched.parallel.host import this_host
from hetsched.parallel.station import Pull, Station

log = logging.getLogger("hetsched")
_MOST_TASKS = 32


def where_possible(task: ContextTask, *, group: dist.ProcessGroup, like: Tensor, head_dim: int) -> ContextTask:
    """The task, with keys pulled where the group's ranks can and unless it forces another way.

    All ranks that have rows call it, with tensors alike. The same task gives the same one again.

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
    return task if reason else _pulling(task)


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
        RuntimeError: in an earlier call some copies did not land within seconds; its results were wrong.
    """
    from hetsched.kernels.attention import hopper_pull

    if choose(q_THD) != "hopper":
        raise ValueError(f"keys of dtype {k_TKD.dtype} on {k_TKD.device} cannot be pulled; use forced='ring'")
    station, pulled = _station(group), task.pulled
    (stages,) = station.open((_key_shape(task, k_TKD.shape[2]),), k_TKD.dtype, task.meter)
    stage = _fill_keys(stages[task.rank], k_TKD, v_TKD, task)
    landed = station.pull((Pull(stages, pulled.runs),), task.meter)
    staged = staging.Staged(stage, pulled.needs, station.counter, landed, station.lost)
    result = hopper_pull.forward(q_THD, (k_TKD, v_TKD), staged, pulled.attention, scale=scale)
    station.close()
    return result


def backward(
    dout_THD: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    task: ContextTask,
    *,
    group: dist.ProcessGroup,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`hetsched.parallel.ring.backward`, always in one fixed order; all ranks of the group call it.

    Raises:
        RuntimeError: as for :func:`forward`.
    """
    from hetsched.kernels.attention import hopper_pull

    q, k, v, out, lse = saved
    dout_THD = dout_THD.contiguous()
    statistics = (lse, row_delta(out, dout_THD))
    station, keys, queries = _station(group), task.pulled, task.pulled_back
    num_heads, head_dim = q.shape[1:]
    query_shape = (queries.plan.num_rows, staging.query_columns(num_heads, head_dim))
    key_stages, query_stages = station.open((_key_shape(task, head_dim), query_shape), q.dtype, task.meter)
    stage, query_stage = _fill_keys(key_stages[task.rank], k, v, task), query_stages[task.rank]
    staging.fill_queries(query_stage, q, dout_THD, queries.own, statistics=statistics)
    landed = station.pull((Pull(key_stages, keys.runs), Pull(query_stages, queries.runs)), task.meter)
    staged = staging.Staged(stage, keys.needs, station.counter, landed, station.lost)
    dq = hopper_pull.query_gradient(dout_THD, q, (k, v), staged, statistics, keys.attention, scale=scale)
    station.join()
    more = staging.StagedQueries.of(query_stage, num_heads=num_heads, head_dim=head_dim)
    dk, dv = hopper_pull.key_gradients(dout_THD, q, (k, v), more, statistics, queries.attention, scale=scale)
    station.close()
    return dq, dk, dv


def _key_shape(task: ContextTask, head_dim: int) -> tuple[int, int]:
    """Rows and columns of a stage of keys, as copies see it."""
    heads = task.heads_of_part
    return task.num_kv_heads // heads * task.pulled.plan.num_rows, 2 * heads * head_dim


def _fill_keys(stage_RC: Tensor, k_TKD: Tensor, v_TKD: Tensor, task: ContextTask) -> Tensor:
    """The stage as kernels see it, with this rank's own keys and values."""
    pulled = task.pulled
    stage = stage_RC.view(-1, pulled.plan.num_rows, 2, task.heads_of_part, k_TKD.shape[2])
    staging.fill(stage, k_TKD, v_TKD, pulled.own)
    return stage


@functools.lru_cache(_MOST_TASKS)
def _pulling(task: ContextTask) -> ContextTask:
    return replace(task, heads_of_part=pulls.heads_of_part(task.num_kv_heads))


@functools.cache
def _station(group: dist.ProcessGroup) -> Station:
    return Station(group, torch.device("cuda", torch.cuda.current_device()))


@functools.cache
def _why_not_share(group: dist.ProcessGroup) -> str | None:
    """Why the ranks of a group cannot share memory; the first look communicates, and reserves it if they can."""
    ranks = dist.get_process_group_ranks(group)
    every: list[tuple[str, bool]] = [("", False)] * group.size()
    dist.all_gather_object(every, (this_host(), symmetric.is_reserved_for_others(ranks)), group=group)
    if len({host for host, _ in every}) > 1:
        return "the group's ranks are on several hosts"
    if any(is_reserved for _, is_reserved in every):
        return "some of the group's ranks share memory with others besides, which torch cannot do"
    symmetric.reserve(ranks)
    return None


def _why_not(group: dist.ProcessGroup, like: Tensor) -> str | None:
    """Why ranks cannot pull; the same on all of them."""
    if choose(like) != "hopper":
        return "the attention kernels for Hopper do not run on these inputs"
    reason = library.missing()
    if reason is not None:
        return reason
    return _why_not_share(group)


@functools.cache
def _tell(reason: str | None) -> None:
    """Once for each reason."""
    log.info("context attention pulls keys" if reason is None else f"context attention pulls no keys: {reason}")
