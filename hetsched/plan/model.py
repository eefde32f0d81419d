"""Sizes of the reference model, as the plan file states them: ``[model.<module>]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision encoder with its projector, ``kind = "vision"``.

    Args:
        layers, hidden, heads, ffn: of its transformer; ``ffn`` is the inner width of the MLP.
        patch: pixels on the side of a patch.
        merge: patches on the side of the square that becomes one row.
        out_hidden: width of the rows it produces, the consumer's hidden size.
    """

    kind: Literal["vision"] = "vision"
    layers: int
    hidden: int
    heads: int
    ffn: int
    patch: int
    merge: int
    out_hidden: int


@dataclass(frozen=True, kw_only=True)
class LLMConfig:
    """A decoder language model, ``kind = "decoder"``.

    Args:
        layers, hidden, heads, kv_heads, ffn: of its transformer; ``kv_heads`` divides ``heads``.
        vocab: number of token ids.
    """

    kind: Literal["decoder"] = "decoder"
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
