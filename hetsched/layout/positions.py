"""Position ids of packed sequences: 1-D, and 3-D for M-RoPE from the grids of images and clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class GridRun(NamedTuple):
    """Token positions of a sample from ``start`` that hold an image or clip, row by row, frame after frame.

    Frames, height and width count rows as the language model sees them, so after the encoder has merged patches; an
    image has one frame.
    """

    start: int
    frames: int
    height: int
    width: int

    @property
    def num_rows(self) -> int:
        return self.frames * self.height * self.width


def text_positions(lengths: Sequence[int]) -> IntArray:
    """Positions 0, 1, ... of each sequence in turn.

    Args:
        lengths: tokens of each sequence of a packed one.

    Returns:
        int64 ``[num_tokens]``.
    """
    array = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(array) - array
    return np.arange(int(array.sum()), dtype=np.int64) - np.repeat(starts, array)


def mrope_positions(num_tokens: int, grids: Sequence[GridRun]) -> IntArray:
    """Frame, height and width position of each token of one sample.

    Text advances all three by one a token. A grid's rows have its base plus their frame, row and column; what follows
    a grid begins at one more than the largest position in it, so at the base plus its largest side.

    Args:
        num_tokens: length of the sample.
        grids: ascending by start and disjoint; positions in none of them, audio too, count as text.

    Returns:
        int64 ``[3, num_tokens]``.

    Raises:
        ValueError: a grid is empty, overlaps the one before or ends behind the sample; the message names it.

    Source: Wang et al. 2024, Qwen2-VL (2409.12191), section 2.1, multimodal rotary position embedding.
    """
    positions = np.empty((3, num_tokens), dtype=np.int64)
    token = base = 0
    for number, grid in enumerate(grids):
        end = grid.start + grid.num_rows
        if min(grid[1:]) < 1 or grid.start < token or end > num_tokens:
            raise ValueError(f"grids[{number}] = {grid}: expected a grid within [{token}, {num_tokens})")
        positions[:, token : grid.start] = base + np.arange(grid.start - token)
        base += grid.start - token
        sides = np.indices(grid[1:], dtype=np.int64).reshape(3, grid.num_rows)
        positions[:, grid.start : end] = base + sides
        token, base = end, base + max(grid[1:])
    positions[:, token:] = base + np.arange(num_tokens - token)
    return positions


def packed_mrope_positions(lengths: Sequence[int], grids: Sequence[Sequence[GridRun]]) -> IntArray:
    """``mrope_positions`` of each sample in turn; each begins at 0.

    Args:
        lengths: tokens of each sample.
        grids: the grids of each sample, their starts counted within it.

    Returns:
        int64 ``[3, num_tokens]``.
    """
    parts = [mrope_positions(length, runs) for length, runs in zip(lengths, grids, strict=True)]
    return np.concatenate([np.empty((3, 0), dtype=np.int64), *parts], axis=1)
