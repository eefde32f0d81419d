"""torch's own pipeline runtime on the ranks of a test, and the gradients it has to find."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

ROWS_PER_MICROBATCH = 3
WIDTH = 6

Gradients = dict[str, Tensor]


def make_stage(stage: int) -> nn.Module:
    """A stage of the chain, of the same weights wherever it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(stage)
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH)).double()


def make_batch(num_microbatches: int) -> tuple[Tensor, Tensor]:
    """Rows and targets that differ in every microbatch."""
    generator = torch.Generator().manual_seed(7)
    shape = (2, num_microbatches * ROWS_PER_MICROBATCH, WIDTH)
    rows, targets = torch.randn(shape, generator=generator, dtype=torch.float64)
    return rows, targets


def sum_loss(output: Tensor, target: Tensor) -> Tensor:
    """A sum, so that the microbatches' losses add up to the batch's."""
    return ((output - target) ** 2).sum()


def sequential_gradients(num_stages: int, num_microbatches: int) -> Gradients:
    """Of all stages, by plain autograd on the whole batch."""
    stages = [make_stage(stage) for stage in range(num_stages)]
    rows, targets = make_batch(num_microbatches)
    sum_loss(nn.Sequential(*stages)(rows), targets).backward()
    return _gradients(dict(enumerate(stages)))


def runtime_gradients(csv: str, file_format: str, stage_ranks: tuple[int, ...], num_microbatches: int) -> Gradients:
    """Of this rank's stages, by torch's runtime from a schedule CSV."""
    rank, num_stages = dist.get_rank(), len(stage_ranks)
    modules = {stage: make_stage(stage) for stage in range(num_stages) if stage_ranks[stage] == rank}
    stages = [PipelineStage(module, stage, num_stages, torch.device("cpu")) for stage, module in modules.items()]
    schedule = _PipelineScheduleRuntime(stages, num_microbatches, loss_fn=sum_loss, scale_grads=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "schedule.csv")
        path.write_text(csv, newline="")
        schedule._load_csv(str(path), format=file_format)
    rows, targets = make_batch(num_microbatches)
    schedule.step(*([rows] if 0 in modules else []), target=targets if num_stages - 1 in modules else None)
    return _gradients(modules)


def _gradients(stages: dict[int, nn.Module]) -> Gradients:
    named = {f"{stage}.{name}": p.grad for stage, module in stages.items() for name, p in module.named_parameters()}
    return {name: grad for name, grad in named.items() if grad is not None}
