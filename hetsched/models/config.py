"""The sizes of both modules of the reference model."""

from __future__ import annotations

from dataclasses import dataclass

from hetsched.plan.model import LLMConfig, VisionConfig, stage_layers

__all__ = ["LLMConfig", "ModelConfig", "VisionConfig", "stage_layers"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The reference multimodal model: one vision encoder feeding one LLM."""

    vision: VisionConfig
    llm: LLMConfig
