"""Stages whose work is known, and what a recorder says of them; in a module of its own for worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched.batch import Batch
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.runtime.measure.clock import HostClock
from hetsched.runtime.measure.recorder import Record
from hetsched.runtime.report import StepReport
from hetsched.runtime.stage import StageMeta
from hetsched.sim.overlap import Overlap
from tests.dist.ragged import RaggedSource
from tests.gpu.transport_ranks import kernels_loaded

HIDDEN, SIZE = 12, 4096
NUM_MATMULS = 20
"""Of a forward; a backward has twice as many. On a Hopper each takes about 0.2 ms."""
NUM_LATE = 40


@dataclass
class Seen:
    """What one rank saw of a step.

    Args:
        burnt_ns: what events around the stages' matmuls say they took.
        records, timeline, overlaps, report, drift_ns: the engine's.
    """

    burnt_ns: int
    records: tuple[Record, ...]
    timeline: dict[str, Any]
    overlaps: tuple[Overlap, ...]
    report: StepReport
    drift_ns: int


class Fire:
    """Matmuls, and the time they took on the device."""

    def __init__(self) -> None:
        self._a, self._b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.num_extra = 0

    def burn(self, count: int) -> None:
        span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        span[0].record()
        for _ in range(count):
            torch.mm(self._a, self._b, out=self._out)
        span[1].record()
        self._spans.append(span)

    def burnt_ns(self) -> int:
        """Since this was last asked."""
        spans, self._spans = self._spans, []
        return round(sum(start.elapsed_time(end) for start, end in spans) * 1e6)


class _Burn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, fire: Fire) -> Tensor:
        ctx.fire = fire
        fire.burn(NUM_MATMULS + fire.num_extra)
        return rows * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.fire.burn(2 * NUM_MATMULS)
        return gradient, None


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Linear(16, HIDDEN)

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor:
        return self.inner(meta.inputs["patches"]).unflatten(0, (-1, 4)).sum(1)


class Sink(nn.Module):
    """Two stages: the first embeds, the last has the loss, and both burn."""

    def __init__(self, stage: int, fire: Fire) -> None:
        super().__init__()
        self.stage, self.fire = stage, fire
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        if stage == 0:
            self.embed = nn.Embedding(50, HIDDEN)

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor | tuple[Tensor, Tensor]:
        if self.stage == 0:
            rows = self.embed(meta.inputs["ids"])
            for entering in meta.boundary.values():
                rows = rows.index_copy(0, entering.index, entering.rows)
        assert rows is not None
        rows = _Burn.apply(self.linear(rows), self.fire)  # type: ignore[no-untyped-call]
        if self.stage == 0:
            return rows
        is_target = meta.inputs["labels"] >= 0
        return (rows.square().sum(1) * is_target).sum(), is_target.sum()


@contextmanager
def no_synchronization() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def burn_on_ranks(plan: Plan, folder: Path) -> None:
    """Leaves for each rank what it saw of a step, of one in which rank 1 is late, and of one timed by the host."""
    torch.cuda.set_device(dist.get_rank())
    fire = Fire()
    builders = {"vision": lambda stage, mesh: Encoder(), "llm": lambda stage, mesh: Sink(stage, fire)}
    batch = Batch.of(RaggedSource(plan.seed, items="equal"), range(2 * plan.microbatches))
    engine = Engine(plan, builders, timeout_s=60.0)
    engine.step(batch)
    run = engine._executor.run

    def strictly(*args: Any, **options: Any) -> Any:
        with no_synchronization():
            return run(*args, **options)

    def step(engine: Engine) -> Seen:
        fire.burnt_ns()
        report = engine.step(batch)
        seen = engine.recorder.records, engine.timeline().to_json(), engine.overlap(), report
        return Seen(fire.burnt_ns(), *seen, engine.recorder.drift_ns)

    with kernels_loaded():
        engine.step(batch)
        with mock.patch.object(engine._executor, "run", strictly):
            found = {"even": step(engine)}
        fire.num_extra = NUM_LATE * dist.get_rank()
        found["late"] = step(engine)
        fire.num_extra = 0
        with mock.patch("hetsched.runtime.engine.clock_of", return_value=HostClock()):
            other = Engine(plan, builders, timeout_s=60.0)
        other.step(batch)
        found["by the host"] = step(other)
    torch.save(found, folder / f"seen-{dist.get_rank()}.pt")
