"""Which ranks keep which tokens of a packed sequence: context parallelism, and sequence-parallel tp within it.

A map of tokens is an array of HolderRuns, int64 ``[num_runs, 4]`` with columns rank, local row, start in the
sequence and number of rows, by rank and then local row. Rank (c, s) of a ``cp`` x ``sp`` group has the number
``c * sp + s``. Each token has exactly one holder, nothing is padded and nothing has to divide. A rank may hold no
token at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetsched import _core

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that share a sequence.

    Args:
        cp: context-parallel ranks.
        sp: sequence-parallel tp ranks, which split each cp rank's rows into equal runs; 1 for plain tp.
    """

    cp: int = 1
    sp: int = 1


def spread_zigzag(num_tokens: int, group: Group) -> IntArray:
    """The whole sequence in 2 * cp equal pieces, of which cp rank r keeps pieces r and 2 * cp - 1 - r.

    Under a causal mask over the whole sequence every rank has the same work.

    Args:
        num_tokens: of the packed sequence; pieces differ by at most one token.
        group: the ranks.

    Returns:
        The map of tokens, ``[num_runs, 4]``.
    """
    return _core.spread_zigzag(num_tokens, group.cp, group.sp)


def tokens_of(runs: IntArray, rank: int) -> IntArray:
    """The tokens that a rank keeps, in the order of its local rows: int64 ``[num_local]``.

    Indexing any per-token array of the sequence with it gives the rank's part: ids, labels, positions, slots.
    """
    mine = runs[runs[:, 0] == rank]
    parts = [np.arange(start, start + count, dtype=np.int64) for _, _, start, count in mine.tolist()]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
