"""Initial weights that depend on a parameter's name alone, never on how the model is cut into stages."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def initialize(stage: nn.Module, *, seed: int, module: str, dtype: torch.dtype) -> None:
    """Give a stage its initial weights.

    Every parameter has a generator of its own, seeded by (seed, module, parameter's name), and is drawn in
    float64: any split of the model, in any dtype, holds the same weights up to rounding to that dtype.

    Linear weights have variance 1 / inputs, embeddings 1 / 25; norms start as the identity, biases at 0.

    Args:
        stage: the stage; its parameters are replaced in place.
        seed: seed of the run.
        module: name of the module that the stage belongs to.
        dtype: dtype of the parameters.
    """
    stage.to(dtype)
    for prefix, part in stage.named_modules():
        for name, parameter in part.named_parameters(prefix, recurse=False):
            with torch.no_grad():
                parameter.copy_(_initial(part, name, parameter.shape, seed=seed, module=module))


def _initial(part: nn.Module, name: str, shape: torch.Size, *, seed: int, module: str) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float64)
    if not isinstance(part, nn.Linear | nn.Embedding):
        return torch.ones(shape, dtype=torch.float64)
    std = part.in_features**-0.5 if isinstance(part, nn.Linear) else 0.2
    digest = hashlib.sha256(f"{seed}/{module}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, dtype=torch.float64, generator=generator) * std
