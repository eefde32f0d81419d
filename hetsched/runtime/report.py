"""What a step reports, and how the ranks' figures become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hetsched.runtime.measure.context_meter import ContextMeter
from hetsched.runtime.measure.recorder import Recorder


@dataclass(frozen=True)
class StepReport:
    """One step over all ranks.

    Args:
        loss: sum of the losses over the weight of the global batch.
        num_tokens: tokens of the batch's samples.
        step_s: seconds of the slowest rank, from the first action on, preparing the next step included.
        waiting_s: seconds that a rank's actions spent waiting for rows or other ranks, mean over ranks: on a GPU
            those of the stream that computes. Where ranks share cores this is contention too.
        bubble: waiting over step time, mean over ranks.
        sent_bytes: bytes that crossed ranks between stages, all ranks.
        context_bytes: bytes that crossed ranks for context-parallel attention, all ranks.
        context_waiting_s: the part of waiting_s spent on those, mean over ranks.
        peak_memory_bytes: of the rank that needs most (of the process on CPU, of the device on a GPU).
        host_us_per_action: on GPUs, microseconds for which an action held the host, which only launches there; the
            mean of the rank where it is largest. None on CPUs.
        runtime_us_per_action: the part of it outside of the stages' own code, likewise.
    """

    loss: float
    num_tokens: int
    step_s: float
    waiting_s: float
    bubble: float
    sent_bytes: int
    context_bytes: int
    context_waiting_s: float
    peak_memory_bytes: int
    host_us_per_action: float | None = None
    runtime_us_per_action: float | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """A forward-only step over all ranks.

    Args:
        loss: as in StepReport.
        outputs: sample index -> rows of what the last stage returned after ``(loss_sum, weight)``,
            ``[num_tokens, ...]`` on CPU, once for a sample that is in the batch several times; empty if it returned
            nothing more.
    """

    loss: float
    outputs: dict[int, torch.Tensor]


def recorded_figures(recorder: Recorder) -> dict[str, float]:
    """What one rank recorded of a step, for ``make_report``."""
    records, num_actions = recorder.records, max(1, len(recorder.records))
    host_ns = sum(record.host_ns for record in records)
    return {
        "step_s": recorder.step_ns / 1e9,
        "waiting_s": recorder.waited_ns / 1e9,
        "host_us": host_ns / 1e3 / num_actions,
        "runtime_us": (host_ns - sum(record.stage_host_ns for record in records)) / 1e3 / num_actions,
    }


def context_figures(meters: Iterable[ContextMeter]) -> dict[str, float]:
    """What one rank's context-parallel attention did in a step, for ``make_report``."""
    passed = [passage for meter in meters for passage in meter.passed()]
    return {
        "context_bytes": float(sum(passage.num_bytes for passage in passed)),
        "context_waiting_s": sum(passage.waited_ns for passage in passed) / 1e9,
    }


def make_report(
    every: Mapping[str, Sequence[float]], *, divisor: float, num_tokens: int, is_on_gpu: bool
) -> StepReport:
    """The report of a step from the figures of its ranks.

    Args:
        every: by name and rank: ``loss``, ``sent_bytes``, ``memory``, and what ``recorded_figures`` and
            ``context_figures`` give.
        divisor: weight of the global batch.
        num_tokens: of the batch.
        is_on_gpu: whether the host only launches.
    """
    size = len(every["loss"])
    return StepReport(
        loss=sum(every["loss"]) / divisor,
        num_tokens=num_tokens,
        step_s=max(every["step_s"]),
        waiting_s=sum(every["waiting_s"]) / size,
        bubble=sum(w / s for w, s in zip(every["waiting_s"], every["step_s"], strict=True)) / size,
        sent_bytes=int(sum(every["sent_bytes"])),
        context_bytes=int(sum(every["context_bytes"])),
        context_waiting_s=sum(every["context_waiting_s"]) / size,
        peak_memory_bytes=int(max(every["memory"])),
        host_us_per_action=max(every["host_us"]) if is_on_gpu else None,
        runtime_us_per_action=max(every["runtime_us"]) if is_on_gpu else None,
    )


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
