"""What a step reports, and how the ranks' figures become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class StepReport:
    """One step over all ranks.

    Args:
        loss: sum of the losses over the weight of the global batch.
        num_tokens: tokens of the batch's samples.
        step_s: seconds of the slowest rank, from the first action on, preparing the next step included.
        waiting_s: seconds that a rank spent waiting for rows or other ranks, mean over ranks. Where ranks share
            cores this is contention too; on GPUs it is the host's waiting, see hetsched.runtime.recorder.
        bubble: waiting over step time, mean over ranks.
        sent_bytes: bytes that crossed ranks between stages, all ranks.
        peak_memory_bytes: of the rank that needs most (of the process on CPU, of the device on a GPU).
    """

    loss: float
    num_tokens: int
    step_s: float
    waiting_s: float
    bubble: float
    sent_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class EvaluationReport:
    """A forward-only step over all ranks.

    Args:
        loss: as in StepReport.
        outputs: sample index -> rows of what the last stage returned after ``(loss_sum, weight)``,
            ``[num_tokens, ...]`` on CPU; empty if it returned nothing more.
    """

    loss: float
    outputs: dict[int, torch.Tensor]


def gather_figures(figures: dict[str, float], *, group: dist.ProcessGroup | None) -> dict[str, list[float]]:
    """Each figure of every rank, by rank."""
    mine = torch.tensor(list(figures.values()), dtype=torch.float64)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    return {key: [float(rank[i]) for rank in every] for i, key in enumerate(figures)}


def gather_objects(value: Any, *, group: dist.ProcessGroup | None) -> list[Any]:
    """``value`` of every rank, by rank."""
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, value, group=group)
    return every


def name_ranks(problems: Sequence[str | None]) -> str:
    """The problems of all ranks as one text that names the ranks; "" where there are none."""
    return "; ".join(f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem is not None)
