"""What must hold of a plan beyond the types of its fields."""

from __future__ import annotations

import math
import re
from itertools import product

from hetsched.config import require
from hetsched.plan.check_schedule import check_schedule
from hetsched.plan.model import LLMConfig, VisionConfig
from hetsched.plan.sections import DataPlan, ModulePlan, Plan, TrainingPlan, grid_ranks
from hetsched.plan.words import counted
from hetsched.schedule.registry import PIPELINES

UNBUILT = ("tp", "ep")
"""Degrees that plans may name but the runtime does not build yet."""


def check_plan(plan: Plan) -> None:
    """Raise PlanError at the first thing that cannot be run."""
    require(
        plan.name not in ("", ".", "..") and "/" not in plan.name,
        f"name = {plan.name!r}",
        field="name",
        fix="write a name that a folder can have: `hetsched train` writes into runs/<name>",
    )
    require(plan.world_size >= 1, f"world_size = {plan.world_size}", field="world_size", fix="use at least 1")
    require(plan.microbatches >= 1, f"microbatches = {plan.microbatches}", field="microbatches", fix="use at least 1")
    if plan.capacity is not None:
        require(
            plan.capacity >= 1, f"capacity = {plan.capacity}", field="capacity", fix="use at least 1, or no capacity"
        )
    require(bool(plan.modules), "there are no modules", field="modules", fix="add [modules.<name>] tables")
    for name, module in plan.modules.items():
        _check_degrees(name, module)
    _check_graph(plan)
    _check_model(plan)
    for name, module in plan.modules.items():
        _check_layout(plan, name, module)
        _check_ranks(plan, name, module)
        _check_hidden(plan, name, module)
    for name, module in plan.modules.items():
        _check_context_ranks(plan, name, module)
    _check_world(plan)
    _check_trains(plan)
    check_schedule(plan)
    _check_data(plan)
    _check_training(plan)


def _check_degrees(name: str, module: ModulePlan) -> None:
    for axis in ("tp", "cp", "dp", "pp", "vpp", "ep"):
        degree, field = getattr(module.layout, axis), f"modules.{name}.layout.{axis}"
        require(degree >= 1, f"module {name}: {axis}={degree}", field=field, fix="use at least 1")


def _check_layout(plan: Plan, name: str, module: ModulePlan) -> None:
    path, layout = f"modules.{name}.layout", module.layout
    built = "dp, cp, pp and vpp are built" if name == plan.sink else "an encoder can have dp and pp"
    for axis in UNBUILT:
        degree = getattr(layout, axis)
        require(
            degree == 1,
            f"module {name}: {axis}={degree} is not built yet",
            field=f"{path}.{axis}",
            fix=f"write {axis} = 1; {built}",
        )
    if plan.model is not None:
        layers = plan.model[name].layers
        require(
            layout.num_stages <= layers,
            f"module {name}: {counted(layout.num_stages, 'stage')} for {counted(layers, 'layer')}",
            field=f"{path}.pp",
            fix=f"choose {'pp' if layout.vpp == 1 else 'pp * vpp'} of at most {layers}",
        )
    _check_virtual_stages(plan, name, module)
    require(
        layout.cp == 1 or name == plan.sink,
        f"module {name}: cp={layout.cp}, but its items are encoded whole",
        field=f"{path}.cp",
        fix="raise dp instead: items are shared among its replicas whatever their number",
    )
    cut = module.shortest_cut
    require(
        cut is None or (cut >= 1 and layout.cp > 1),
        f"module {name}: shortest_cut={cut}" + (", but cp=1: no sample is cut" if layout.cp == 1 else ""),
        field=f"modules.{name}.shortest_cut",
        fix="use at least 1" if layout.cp > 1 else "remove it, or raise cp",
    )


def _check_virtual_stages(plan: Plan, name: str, module: ModulePlan) -> None:
    name_of_pipeline = plan.schedule.pipeline
    wanted = PIPELINES[name_of_pipeline].num_virtual if name == plan.sink else 1
    if wanted is None:
        return
    require(
        module.layout.vpp == wanted,
        f"module {name}: vpp={module.layout.vpp}, but "
        + (
            f"{name_of_pipeline} has {counted(wanted, 'virtual stage')} a lane"
            if name == plan.sink
            else "it is an encoder"
        ),
        field=f"modules.{name}.layout.vpp",
        fix=f"write vpp = {wanted}"
        + (", or choose another schedule.pipeline (interleaved takes any)" if name == plan.sink else ""),
    )


def _check_ranks(plan: Plan, name: str, module: ModulePlan) -> None:
    path = f"modules.{name}"
    require(
        (module.ranks is None) != (module.first_rank is None),
        f"module {name} gives {'both' if module.ranks is not None else 'neither'} of ranks and first_rank",
        field=f"{path}.ranks",
        fix="give one of them",
    )
    needed = module.layout.num_ranks
    require(
        needed <= plan.world_size,
        f"module {name}: a layout of tp*cp*dp*pp={needed} ranks in a world of {plan.world_size}",
        field=f"{path}.layout",
        fix=f"raise world_size to {needed} or more, or lower the degrees",
    )
    ranks = grid_ranks(module)
    require(
        len(ranks) == needed,
        f"module {name}: {counted(len(ranks), 'rank')} for a layout of tp*cp*dp*pp={needed}",
        field=f"{path}.ranks",
        fix=f"list {counted(needed, 'rank')}, or change the degrees",
    )
    for rank in ranks:
        require(
            0 <= rank < plan.world_size,
            f"module {name}: rank {rank} is outside the world of {plan.world_size}",
            field=f"{path}.{'ranks' if module.ranks is not None else 'first_rank'}",
            fix=f"use ranks 0 to {plan.world_size - 1}, or raise world_size",
        )
        require(
            ranks.count(rank) == 1,
            f"module {name}: rank {rank} is listed {ranks.count(rank)} times",
            field=f"{path}.ranks",
            fix="list each rank once",
        )


def _check_context_ranks(plan: Plan, name: str, module: ModulePlan) -> None:
    """Process groups number their ranks in ascending order, and maps of tokens number cp ranks."""
    grid, layout = plan.grids[name], module.layout
    for pp, dp in product(range(layout.pp), range(layout.dp)):
        ranks = [grid.rank(cp=cp, dp=dp, pp=pp) for cp in range(layout.cp)]
        require(
            ranks == sorted(ranks),
            f"module {name}: the context-parallel ranks {', '.join(map(str, ranks))} of one replica do not ascend",
            field=f"modules.{name}.ranks",
            fix=f"list them as {', '.join(map(str, sorted(ranks)))}",
        )


def _check_hidden(plan: Plan, name: str, module: ModulePlan) -> None:
    path = f"modules.{name}.hidden"
    if plan.model is None:
        require(module.hidden is not None, f"module {name} has no hidden size", field=path, fix="add hidden = <width>")
        hidden = module.hidden or 0
        require(hidden >= 1, f"module {name}: hidden={module.hidden}", field=path, fix="use at least 1")
    else:
        require(
            module.hidden is None,
            f"module {name}: hidden is given twice",
            field=path,
            fix=f"remove it; model.{name} already has it",
        )


def _check_world(plan: Plan) -> None:
    used = {rank for module in plan.modules.values() for rank in grid_ranks(module)}
    idle = next((rank for rank in range(len(used) + 1) if rank not in used), 0)
    require(
        len(used) == plan.world_size,
        f"world_size = {plan.world_size}, but rank {idle} belongs to no module",
        field="world_size",
        fix="lower world_size, or give the rank to a module",
    )


def _check_trains(plan: Plan) -> None:
    require(
        any(not module.frozen for module in plan.modules.values()),
        "every module is frozen: nothing trains",
        field=f"modules.{plan.sink}.frozen",
        fix="leave out frozen = true for the modules to train",
    )


def _check_graph(plan: Plan) -> None:
    for name in plan.modules:
        require(
            re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None,
            f"{name!r} is no module name",
            field=f"modules.{name}",
            fix="use letters, digits and underscores",
        )
    for i, boundary in enumerate(plan.boundaries):
        for end in ("producer", "consumer"):
            module = getattr(boundary, end)
            require(
                module in plan.modules,
                f"boundary {boundary.name}: there is no module {module!r}",
                field=f"boundaries[{i}].{end}",
                fix=f"use one of: {', '.join(plan.modules)}",
            )
        require(
            boundary.producer != boundary.consumer,
            f"boundary {boundary.name}: it leads from a module to itself",
            field=f"boundaries[{i}].consumer",
            fix="name the module that the rows go to, or remove the boundary",
        )
        stages = plan.modules[boundary.consumer].layout.num_stages
        require(
            0 <= boundary.stage < stages,
            f"boundary {boundary.name}: stage {boundary.stage}, but {boundary.consumer} has {counted(stages, 'stage')}",
            field=f"boundaries[{i}].stage",
            fix="use 0" if stages == 1 else f"use 0 to {stages - 1}",
        )
        hidden = boundary.hidden
        require(
            hidden is None or hidden >= 1,
            f"boundary {boundary.name}: hidden={hidden}",
            field=f"boundaries[{i}].hidden",
            fix="use at least 1, or leave it out: it is the consumer's then",
        )
    edges = [(b.producer, b.consumer) for b in plan.boundaries]
    for i, edge in enumerate(edges):
        require(
            edges.index(edge) == i,
            f"boundary {'->'.join(edge)} is given twice",
            field=f"boundaries[{i}]",
            fix="remove one",
        )
    producers = {p for p, _ in edges}
    sinks = [name for name in plan.modules if name not in producers]
    require(
        len(sinks) == 1,
        f"{len(sinks)} modules have no boundary that leaves them ({', '.join(sinks) or 'a cycle'})",
        field="boundaries",
        fix="let every module but the one that computes the loss produce for another",
    )
    for i, (producer, consumer) in enumerate(edges):
        require(
            consumer == sinks[0],
            f"boundary {producer}->{consumer}: chains of modules are not built yet",
            field=f"boundaries[{i}].consumer",
            fix=f"let {producer} feed {sinks[0]}",
        )


def _check_model(plan: Plan) -> None:
    if plan.model is None:
        return
    for name in plan.modules:
        wanted = LLMConfig if name == plan.sink else VisionConfig
        field, fix = f"model.{name}", f'add [model.{name}] with kind = "{wanted.kind}"'
        require(name in plan.model, f"module {name} has no sizes", field=field, fix=fix)
        found = plan.model[name]
        require(isinstance(found, wanted), f"module {name} is a {found.kind}", field=f"{field}.kind", fix=fix)
    for name in plan.model:
        require(name in plan.modules, f"model sizes for {name!r}, which is no module", field="model", fix="remove them")
    for i, boundary in enumerate(plan.boundaries):
        stated, hidden = boundary.hidden, plan.model[boundary.consumer].hidden
        require(
            stated in (None, hidden),
            f"boundary {boundary.name}: hidden={stated}, but model.{boundary.consumer}.hidden is {hidden}",
            field=f"boundaries[{i}].hidden",
            fix=f"write {hidden}, or leave it out: it is the consumer's then",
        )


def _check_data(plan: Plan) -> None:
    data = plan.data
    if data is None:
        return
    bins = plan.microbatches * plan.modules[plan.sink].layout.dp
    require(
        data.batch_size >= bins,
        f"batch_size = {data.batch_size} for {counted(bins, 'microbatch')} over all replicas",
        field="data.batch_size",
        fix=f"use at least {bins}",
    )
    for name, least in (("seed", 0), ("num_heldout", 1)):
        _check_least(data, name, least, section="data")


def _check_training(plan: Plan) -> None:
    training = plan.training
    if training is None:
        return
    _check_least(training, "steps", 1, section="training")
    for name in ("warmup_steps", "weight_decay", "clip_grad_norm", "evaluate_every"):
        _check_least(training, name, 0, section="training")
    rate, beta2 = training.learning_rate, training.beta2
    require(
        0 < rate < math.inf,
        f"learning_rate = {rate}",
        field="training.learning_rate",
        fix="use a positive number, e.g. 1e-3",
    )
    require(0 <= beta2 < 1, f"beta2 = {beta2}", field="training.beta2", fix="use a number from 0 to below 1, e.g. 0.99")


def _check_least(section_plan: DataPlan | TrainingPlan, name: str, least: int, *, section: str) -> None:
    value = getattr(section_plan, name)
    require(
        least <= value < math.inf,
        f"{name} = {value}",
        field=f"{section}.{name}",
        fix=f"use at least {least}",
    )
