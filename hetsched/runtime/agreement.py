"""What the ranks of a job have to agree on before they work together, and how each is told that they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
import torch.distributed as dist
from torch import nn

from hetsched.errors import JobError, PlanError
from hetsched.plan import Plan
from hetsched.plan.words import counted
from hetsched.runtime.device import check_ranks
from hetsched.runtime.mesh import ModuleGroups
from hetsched.runtime.parameters import Stages
from hetsched.runtime.report import gather_objects

_SAME = 1e-6
"""Relative and absolute: GPUs of two kinds may add up in another order, and other weights differ by far more."""


def check_launch(plan: Plan, modules: Sequence[str]) -> Sequence[str] | None:
    """Compare plans, ranks and devices; every rank calls this as it makes an engine.

    Args:
        plan: of this rank.
        modules: for which it has a builder.

    Returns:
        The host of each rank, where it matters.

    Raises:
        TypeError: what should be a plan is something else.
        PlanError: the job has another number of ranks, or modules and builders do not match; or as by ``check_ranks``.
        JobError: there is no job, or another rank has another plan; or as by ``check_ranks``.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"an engine takes a Plan, not {type(plan).__name__}: hetsched.load_plan reads one from a file")
    if not dist.is_initialized():
        raise JobError("there is no job yet: start its ranks by hetsched.launch, or call init_process_group before")
    # Compared before all else: ranks that raise while others go on would leave those waiting.
    digests = gather_objects(plan.digest, group=None)
    usual = max(digests, key=digests.count)
    for rank, digest in enumerate(digests):
        if digest != usual:
            raise JobError(f"rank {rank} has another plan: its digest is {digest}, the others' is {usual}")
    launched = dist.get_world_size()
    if launched != plan.world_size:
        raise PlanError(
            f"the plan is for {counted(plan.world_size, 'rank')}, and the job has {launched}",
            field="world_size",
            fix=f"launch as many as the plan has, or write world_size = {launched} and layouts to match",
            source=plan.source,
        )
    for name in plan.modules:
        if name not in modules:
            raise PlanError(f"module {name} has no builder", field=f"modules.{name}", fix="pass one to Engine")
    for name in modules:
        if name not in plan.modules:
            fix = f"name builders after the plan's modules: {', '.join(plan.modules)}"
            raise PlanError(f"there is a builder for {name}, which is no module of the plan", field="modules", fix=fix)
    return check_ranks(plan)


def check_copies(stages: Stages, groups: Mapping[str, ModuleGroups]) -> None:
    """Compare the parameters of stages with those of their copies on other ranks; every rank calls this.

    Args:
        stages: of this rank, by module and number.
        groups: of the modules.

    Raises:
        JobError: on every rank, where copies have other parameters, or differ in the sum of a parameter's values.
    """
    # First what they are: to add up what does not fit together would never end, or end wrongly.
    every = gather_objects({key: _described(stage) for key, stage in stages.items()}, group=None)
    _tell(_unlike(stages, groups, every))
    _tell(_unequal(stages, groups))


def _tell(problem: str | None) -> None:
    problems = dict.fromkeys(of for of in gather_objects(problem, group=None) if of is not None)
    if problems:
        raise JobError(f"{', '.join(problems)}; build copies from the same seed, or load them")


_Description = list[tuple[str, tuple[int, ...], bool]]
"""Name, shape and whether it is trained, of each parameter in order."""


def _described(stage: nn.Module) -> _Description:
    return [(name, tuple(p.shape), p.requires_grad) for name, p in stage.named_parameters()]


def _unlike(
    stages: Stages, groups: Mapping[str, ModuleGroups], every: Sequence[Mapping[tuple[str, int], _Description]]
) -> str | None:
    """A stage of this rank that has other parameters than a copy on a later rank."""
    for (module, stage), built in stages.items():
        group, mine, me = groups[module].copies, _described(built), dist.get_rank()
        for rank in () if group is None else dist.get_process_group_ranks(group):
            theirs = every[rank][module, stage]
            if rank > me and theirs != mine:
                ours, other = next((a, b) for a, b in zip_longest(mine, theirs) if a != b)
                return (
                    f"stage {stage} of module {module} has other parameters on rank {rank} than on rank {me}, "
                    f"the first of them {_named(other)} in place of {_named(ours)}"
                )
    return None


def _named(parameter: tuple[str, tuple[int, ...], bool] | None) -> str:
    if parameter is None:
        return "none"
    name, shape, is_trained = parameter
    return f"{name} {list(shape)}{'' if is_trained else ' (frozen)'}"


def _unequal(stages: Stages, groups: Mapping[str, ModuleGroups]) -> str | None:
    """A parameter of this rank whose values are not those of its copies."""
    found = None
    for (module, stage), built in stages.items():
        group, named = groups[module].copies, dict(built.named_parameters())
        if group is None or not named:
            continue
        sums = torch.stack([p.detach().sum(dtype=torch.float64) for p in named.values()]).nan_to_num()
        most = torch.stack([sums, -sums])
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        for name, largest, smallest in zip(named, most[0].tolist(), (-most[1]).tolist(), strict=True):
            if found is None and not math.isclose(largest, smallest, rel_tol=_SAME, abs_tol=_SAME):
                ranks = ", ".join(map(str, dist.get_process_group_ranks(group)))
                found = f"{name} of stage {stage} of module {module} differs between ranks {ranks}, which hold copies"
    return found
