"""Sizes of the reference model, as the plan file states them: ``[model.<module>]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hetsched.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of a vision encoder with its projector, ``kind = "vision"``.

    Args:
        layers: transformer layers.
        hidden: width of a patch's row.
        heads: attention heads; divides ``hidden``.
        ffn: inner width of the feed-forward layers.
        patch: side of a square patch, in pixels.
        merge: side of the square of neighboring patches that become one row of the LLM.

    Raises:
        PlanError: a size that cannot be built; ``field`` is relative to this table.
    """

    kind: Literal["vision"] = "vision"
    layers: int
    hidden: int
    heads: int
    ffn: int
    patch: int
    merge: int

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self, "heads", "hidden")
        if self.hidden % 4:
            raise PlanError(
                f"vision: hidden={self.hidden} is not a multiple of 4 (a sine and a cosine for each of row and column)",
                field="hidden",
                fix=f"choose {self.hidden + -self.hidden % 4}",
            )

    @property
    def patches_per_row(self) -> int:
        """Patches that are merged into one row of the LLM."""
        return self.merge * self.merge


@dataclass(frozen=True, kw_only=True)
class LLMConfig:
    """Sizes of a decoder language model, ``kind = "decoder"``.

    Args:
        layers: transformer layers.
        hidden: width of a token's row, and of the rows that encoders hand over.
        heads: query heads; divides ``hidden`` into an even head size (rotary positions turn pairs).
        kv_heads: key and value heads; divides ``heads``.
        ffn: inner width of the SwiGLU layers.
        vocab: number of token ids.
        rotary_base: the slowest rotary position turns once in about 6 times as many tokens; short sequences
            want a small one.

    Raises:
        PlanError: a size that cannot be built; ``field`` is relative to this table.
    """

    kind: Literal["decoder"] = "decoder"
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    rotary_base: int = 10_000

    def __post_init__(self) -> None:
        _check_positive(self)
        _check_divides(self, "heads", "hidden")
        _check_divides(self, "kv_heads", "heads")
        if (self.hidden // self.heads) % 2:
            raise PlanError(
                f"llm: hidden={self.hidden} and heads={self.heads} give an odd head size, {self.hidden // self.heads}",
                field="heads",
                fix="choose heads so that hidden / heads is even; rotary positions turn pairs of channels",
            )


def stage_layers(layers: int, *, stage: int, num_stages: int, module: str) -> range:
    """The layers of one stage: contiguous, and as even as can be.

    Args:
        layers: layers of the whole module.
        stage: index of the stage, ``0 <= stage < num_stages``.
        num_stages: stages of the module.
        module: its name, for the message.

    Raises:
        PlanError: more stages than layers.
    """
    if num_stages > layers:
        raise PlanError(
            f"module {module}: {num_stages} stages cannot share {layers} layers",
            field=f"modules.{module}.layout.pp",
            fix=f"at most {layers} stages, or more layers",
        )
    return range(stage * layers // num_stages, (stage + 1) * layers // num_stages)


def _check_positive(config: VisionConfig | LLMConfig) -> None:
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if isinstance(value, int) and value < 1:
            raise PlanError(f"{config.kind}: {name}={value}", field=name, fix="write a positive number")


def _check_divides(config: VisionConfig | LLMConfig, name: str, whole_name: str) -> None:
    part, whole = getattr(config, name), getattr(config, whole_name)
    if whole % part:
        raise PlanError(
            f"{config.kind}: {name}={part} does not divide {whole_name}={whole}",
            field=name,
            fix=f"choose {name} from {divisors(whole)}",
        )


def divisors(count: int) -> str:
    """The divisors of a count, for messages; those up to 1024."""
    return ", ".join(str(d) for d in range(1, min(count, 1024) + 1) if count % d == 0)
