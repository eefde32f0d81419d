"""What a rank needs before a step can begin: its plan and this rank's data, on the device.

It waits for nobody, so the next step can be prepared while GPUs work on this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hetsched.batch import Batch
from hetsched.errors import DataError
from hetsched.plan import Plan
from hetsched.runtime.channels import Channels
from hetsched.runtime.report import gather_objects, name_ranks
from hetsched.runtime.step_rooms import StepRooms
from hetsched.runtime.work import RankStep
from hetsched.schedule.program import Program
from hetsched.stepplan import StepPlan, plan_step

_NUM_SHOWN = 4
"""Samples of a batch that a message names."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A step that was planned and loaded, or why it could not be.

    Args:
        batch: what was asked for.
        digest: of the batch.
        work, step: of this rank; None where the batch cannot be planned.
        unfit: why the batch cannot be planned, which is so on every rank.
        problem: why this rank cannot load its part.
    """

    batch: Batch
    digest: int
    work: RankStep | None
    step: StepPlan | None
    unfit: DataError | None = None
    problem: str | None = None

    def agreed(self) -> tuple[RankStep, StepPlan]:
        """The step, once all ranks have theirs; every rank calls this.

        Raises:
            DataError: on every rank, if ranks have different batches, the batch does not fit the plan, or any rank
                could not load its part.
        """
        most = torch.tensor([self.problem is not None, self.digest, -self.digest], dtype=torch.int64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        has_failed, largest, smallest = most.tolist()
        if largest != -smallest:
            raise DataError(_whose_differs(self))
        if self.unfit is not None:
            raise self.unfit
        if has_failed:
            raise DataError(name_ranks(gather_objects(self.problem, group=None)))
        assert self.work is not None and self.step is not None
        return self.work, self.step


def _whose_differs(mine: Prepared) -> str:
    """Which rank has another batch than most; every rank calls this."""
    first = [sample.index for sample in mine.batch.samples[:_NUM_SHOWN]]
    digests, firsts = zip(*gather_objects((mine.digest, first), group=None), strict=True)
    usual = max(digests, key=digests.count)
    rank = next(rank for rank, digest in enumerate(digests) if digest != usual)
    other = digests.index(usual)
    return (
        f"rank {rank} has another batch than rank {other}: their first samples are {firsts[rank]} and "
        f"{firsts[other]}; give every rank the same samples, described alike and in the same order"
    )


def prepare(
    plan: Plan,
    batch: Batch,
    channels: Channels,
    *,
    device: torch.device,
    rooms_of: Callable[[Program], StepRooms],
    is_training: bool = True,
) -> Prepared:
    """Plan a batch's step and load what this rank needs of it.

    Args:
        plan: the job's plan.
        batch: the same on every rank.
        channels: of the plan.
        device: where tensors go.
        rooms_of: where a program's rows arrive.
        is_training: False for the forwards alone.
    """
    digest = batch.digest
    try:
        step = plan_step(plan, batch.samples, is_training=is_training)
    except DataError as error:
        return Prepared(batch, digest, None, None, unfit=error)
    work = RankStep(plan, step, rank=dist.get_rank(), channels=channels, device=device, rooms=rooms_of(step.program))
    try:
        work.load(batch)
    except DataError as error:
        return Prepared(batch, digest, work, step, problem=str(error))
    return Prepared(batch, digest, work, step)
