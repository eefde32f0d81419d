"""The parameters of a rank's stages, and the names that they have in the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

Stages = Mapping[tuple[str, int], nn.Module]
"""By module and number, of one rank."""


def own_parameters(stages: Stages) -> dict[tuple[str, int], dict[str, nn.Parameter]]:
    """Of each stage by name; one that stages of a rank share (tied embeddings, say) is the first one's alone."""
    seen: set[int] = set()
    result = {}
    for key, stage in stages.items():
        named = {name: p for name, p in stage.named_parameters() if id(p) not in seen}
        seen |= {id(p) for p in named.values()}
        result[key] = named
    return result


def tensor_names(stages: Stages) -> dict[tuple[str, int], list[str]]:
    """Of each stage: of its parameters and of its buffers that are saved."""
    return {key: list(stage.state_dict()) for key, stage in stages.items()}


def ambiguous_name(of_ranks: Sequence[Mapping[tuple[str, int], Sequence[str]]]) -> str | None:
    """A name that two stages of a module have, for people; None if none is.

    Args:
        of_ranks: names of tensors by module and stage, of every rank.
    """
    first: dict[tuple[str, str], int] = {}
    for (module, stage), names in (of for mine in of_ranks for of in mine.items()):
        for name in names:
            other = first.setdefault((module, name), stage)
            if other != stage:
                return f"{module}.{name} is in stages {min(other, stage)} and {max(other, stage)}"
    return None
