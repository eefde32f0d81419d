"""The reference multimodal model: for each of its modules a builder of stages."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from hetsched.models.init import initialize
from hetsched.models.llm import LLMStage
from hetsched.models.vit import VisionStage
from hetsched.parallel.meter import Meter
from hetsched.plan import Plan
from hetsched.plan.model import LLMConfig, VisionConfig


class HasStages(Protocol):
    """All that a builder asks of a mesh."""

    @property
    def num_stages(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def context_group(self) -> dist.ProcessGroup | None: ...

    @property
    def meter(self) -> Meter: ...


class StageBuilder(Protocol):
    """Builds one stage of a module, and nothing of the others."""

    def __call__(self, stage: int, mesh: HasStages) -> nn.Module: ...


def builders(plan: Plan) -> dict[str, StageBuilder]:
    """Builders of the modules whose sizes the plan states.

    Weights depend on the plan's seed and on each parameter's name: however the modules are cut into stages,
    together they hold the same weights under the same names.

    Returns:
        Module name -> builder.
    """
    assert plan.model is not None, "the plan has no [model]"
    return {name: _builder(plan, name, config) for name, config in plan.model.items()}


def _builder(plan: Plan, name: str, config: VisionConfig | LLMConfig) -> StageBuilder:
    dtype = getattr(torch, plan.dtype)

    def build(stage: int, mesh: HasStages) -> nn.Module:
        module: nn.Module
        with torch.random.fork_rng(devices=()), mesh.device:
            if isinstance(config, VisionConfig):
                out = plan.hidden(plan.sink)
                module = VisionStage(config, out=out, stage=stage, num_stages=mesh.num_stages, module=name)
            else:
                module = LLMStage(
                    config,
                    stage=stage,
                    num_stages=mesh.num_stages,
                    module=name,
                    context_group=mesh.context_group,
                    meter=mesh.meter,
                )
        initialize(module, seed=plan.seed, module=name, dtype=dtype)
        return module

    return build
