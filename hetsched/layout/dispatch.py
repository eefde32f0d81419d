"""The dispatch planner of context parallelism: which rank keeps which tokens of a microbatch's documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetsched import _core
from hetsched.layout.tokens import IntArray

_TILE = 128
"""Rows of a query tile of the attention kernels."""


def plan_tokens(
    cu_seqlens: Sequence[int],
    *,
    cp: int,
    quadratic: int,
    linear: int,
    shortest_cut: int | None = None,
    sp: int = 1,
) -> IntArray:
    """A map of tokens with level attention work and level token counts, in which few documents are cut.

    A document that is whole on one rank needs nothing from the others, so documents go whole to the rank with
    the least work, the costliest first. As few of the longest as level the rest are cut; pieces are nested, each rank
    taking one from the front and one from the back of what is left, with lengths that give it the tokens and the work
    that it lacks. One document alone is cut zigzag. Ranks with nothing to do are possible. Work is that under a causal
    mask without a window.

    Args:
        cu_seqlens: boundaries of the documents, from 0; at most 2**30 tokens.
        cp: context-parallel ranks.
        quadratic, linear: cost of a document of length L, ``quadratic * L**2 + linear * L``.
        shortest_cut: tokens from which on a document may be cut; by default 2 tiles of 128 rows a piece.
        sp: sequence-parallel ranks, which split each cp rank's rows into equal runs.

    Returns:
        The map of tokens, ``[num_runs, 4]``; see hetsched.layout.tokens. Each rank's rows are in the order of the
        sequence, so that those of one document lie together.

    Raises:
        ValueError: cp or sp below 1, boundaries that fall, a negative cost or one whose total is above 2**62.

    Source: Graham 1969 for whole documents; two pieces a rank as in The Llama 3 Herd of Models, arXiv 2407.21783,
        section 3.3.2, here of unequal lengths.
    """
    if shortest_cut is None:
        shortest_cut = 2 * cp * 2 * _TILE
    return _core.plan_tokens(np.asarray(cu_seqlens, dtype=np.int64), cp, sp, shortest_cut, quadratic, linear)
