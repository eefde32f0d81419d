"""What the last stages return in eval mode besides losses, cut into samples and put together again over ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetsched.batch import Sample
from hetsched.layout.grid import Grid
from hetsched.stepplan import StepPlan


class Piece(NamedTuple):
    """Rows of one sample that one rank has.

    Args:
        sample: its index.
        positions: int64 ``[n]``, in the sample.
        rows: ``[n, ...]`` on the host.
    """

    sample: int
    positions: NDArray[np.int64]
    rows: Tensor


def pieces_of(
    extras: Mapping[tuple[str, int], tuple[Any, ...]], step: StepPlan, grids: Mapping[str, Grid], *, rank: int
) -> list[Piece]:
    """What one rank has.

    Args:
        extras: ``(module, microbatch)`` -> what a last stage returned after ``(loss_sum, weight)``.
        step: that it was returned in.
        grids: of the plan's modules.
        rank: this one.
    """
    pieces = []
    for (module, microbatch), values in extras.items():
        at = grids[module].coordinates(rank)
        for sample, positions, rows in step.shares[module, microbatch][at.dp].by_member(at.cp):
            assert isinstance(sample, Sample)
            pieces.append(Piece(sample.index, positions, values[0][rows].cpu()))
    return pieces


def join_pieces(pieces: Iterable[Piece]) -> dict[int, Tensor]:
    """The rows of each sample, by its index, in the order of their positions; once, however often it was in a batch."""
    of_sample: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        of_sample[piece.sample].append(piece)
    outputs = {}
    for index, parts in of_sample.items():
        _, firsts = np.unique(np.concatenate([part.positions for part in parts]), return_index=True)
        outputs[index] = torch.cat([part.rows for part in parts])[torch.from_numpy(firsts)]
    return outputs
