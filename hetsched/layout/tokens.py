"""Which ranks keep which tokens of a packed sequence: context parallelism, and sequence-parallel tp within it.

A map of tokens is an array of HolderRuns, int64 ``[num_runs, 4]`` with columns rank, local row, start in the
sequence and number of rows, by rank and then local row. Rank (c, s) of a ``cp`` x ``sp`` group has the number
``c * sp + s``. Each token has exactly one holder, nothing is padded and nothing has to divide. A rank may hold no
token at all.

A *token layout* adds what the tp ranks of a replica make of that: whether each keeps all rows of its cp rank, or a run
of them, and whether their gradients of a row are copies or addends.
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


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """What the tp ranks of a replica keep of the rows of their cp rank.

    Args:
        is_sequence_parallel: each keeps one of tp equal runs of them; otherwise each keeps all.
        has_partial_gradients: ranks that keep the same row have addends of its gradient; otherwise copies.
    """

    is_sequence_parallel: bool = False
    has_partial_gradients: bool = False


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


def split_over_tp(tokens: IntArray, tp: int) -> IntArray:
    """A map of tokens in which each rank's rows are cut into ``tp`` equal runs, as sequence-parallel tp keeps them.

    Args:
        tokens: a map of tokens without sequence parallelism, over any number of ranks.
        tp: ranks that share the rows of one rank of it.

    Returns:
        The map of tokens in which part s of rank c has the number ``c * tp + s``.
    """
    rank, row, start, num_rows = tokens.T
    num_ranks = int(rank.max(initial=-1)) + 1
    kept = np.bincount(rank, num_rows, minlength=num_ranks).astype(np.int64)
    # All local rows of all ranks, one rank after the other, are cut where a run or a part begins.
    first = np.cumsum(kept) - kept
    parts = (first[:, None] + kept[:, None] * np.arange(tp) // tp).ravel()
    runs = first[rank] + row
    cuts = np.unique(np.concatenate([runs[num_rows > 0], parts[parts < kept.sum()]]))
    # Runs and parts may be empty: of those that begin at a cut the last one goes on behind it.
    run = np.searchsorted(runs, cuts, side="right") - 1
    part = np.searchsorted(parts, cuts, side="right") - 1
    counts = np.diff(cuts, append=kept.sum())
    return np.stack([part, cuts - parts[part], start[run] + cuts - runs[run], counts], axis=1)


def check_map(tokens: IntArray, *, num_ranks: int, num_tokens: int) -> None:
    """Whether a map of tokens is one.

    Args:
        tokens: what was made elsewhere.
        num_ranks: of the group.
        num_tokens: of the sequence.

    Raises:
        ValueError: a rank that is not in the group, runs that are not by rank and local row, a gap in a rank's rows,
            or a token that nobody holds, or two ranks.
    """
    if tokens.ndim != 2 or tokens.shape[1] != 4 or tokens.dtype != np.int64:
        raise ValueError(f"expected int64 [num_runs, 4], got {tokens.dtype} {list(tokens.shape)}")
    rank, row, start, num_rows = tokens.T
    if (tokens < 0).any() or (rank >= num_ranks).any():
        raise ValueError(f"expected ranks 0 to {num_ranks - 1} and no negative number")
    expected = np.where(np.diff(rank, prepend=-1) != 0, 0, np.roll(row + num_rows, 1))
    if (np.diff(rank) < 0).any() or (row != expected).any():
        raise ValueError("expected runs by rank, and in each rank's local rows one behind the other, from 0")
    held = np.flatnonzero(num_rows)
    held = held[np.argsort(start[held])]
    begins, ends = np.append(start[held], num_tokens), np.append(0, (start + num_rows)[held])
    faults = np.flatnonzero(begins != ends)
    if faults.size:
        token, is_lost = min(begins[faults[0]], ends[faults[0]]), begins[faults[0]] > ends[faults[0]]
        raise ValueError(f"token {token} of {num_tokens} has {'no holder' if is_lost else 'two holders, or is none'}")


def positions_of(starts: IntArray, counts: IntArray) -> IntArray:
    """The members of runs, one run after the other: int64 ``[sum of counts]``."""
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(starts - before, counts)


def documents_of(tokens: IntArray, bounds: IntArray) -> IntArray:
    """The document of each of some ascending tokens, by number.

    Args:
        tokens: int64 ``[num_tokens]``.
        bounds: boundaries of the documents.
    """
    counts = np.diff(np.searchsorted(tokens, bounds))
    return np.repeat(np.arange(len(counts)), counts)


def tokens_of(runs: IntArray, rank: int) -> IntArray:
    """The tokens that a rank keeps, in the order of its local rows: int64 ``[num_local]``.

    Indexing any per-token array of the sequence with it gives the rank's part: ids, labels, positions, slots.
    """
    mine = runs[runs[:, 0] == rank]
    return positions_of(mine[:, 2], mine[:, 3])
