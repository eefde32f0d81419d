"""The reference multimodal model: for each of its modules a builder of stages."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from hetsched.models.config import ModelConfig
from hetsched.models.init import initialize
from hetsched.models.llm import LLMStage
from hetsched.models.vit import VisionStage


class HasStages(Protocol):
    """All that a builder asks of a mesh."""

    @property
    def num_stages(self) -> int: ...


class StageBuilder(Protocol):
    """Builds one stage of a module, and nothing of the others."""

    def __call__(self, stage: int, mesh: HasStages) -> nn.Module: ...


def builders(
    config: ModelConfig, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> dict[str, StageBuilder]:
    """Builders of the modules ``vision`` and ``llm``.

    Weights depend on the seed and on each parameter's name: however the modules are cut into stages,
    together they hold the same weights under the same names.

    Args:
        config: sizes of the model.
        seed: seed of the initial weights.
        dtype: dtype of the parameters and of the computation.
        device: where the parameters live.

    Returns:
        Module name -> builder.
    """

    def build_vision(stage: int, mesh: HasStages) -> nn.Module:
        with torch.device("meta"):
            module = VisionStage(config.vision, out=config.llm.hidden, stage=stage, num_stages=mesh.num_stages)
        initialize(module, seed=seed, module="vision", dtype=dtype, device=device)
        return module

    def build_llm(stage: int, mesh: HasStages) -> nn.Module:
        with torch.device("meta"):
            module = LLMStage(config.llm, stage=stage, num_stages=mesh.num_stages)
        initialize(module, seed=seed, module="llm", dtype=dtype, device=device)
        return module

    return {"vision": build_vision, "llm": build_llm}
