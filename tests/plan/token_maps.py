"""What tests ask of any map of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hetsched.layout.tokens import Group, IntArray, tokens_of


def assert_is_a_partition(runs: IntArray, num_tokens: int, group: Group) -> None:
    """Each token has one holder; local rows count up from 0 without gaps, in the order of the sequence."""
    held: list[int] = []
    for rank in range(group.cp * group.sp):
        mine = runs[runs[:, 0] == rank]
        assert mine[:, 1].tolist() == [0, *np.cumsum(mine[:, 3])[:-1].tolist()][: len(mine)]
        tokens = tokens_of(runs, rank).tolist()
        assert tokens == sorted(tokens)
        held.extend(tokens)
    assert sorted(held) == list(range(num_tokens))
    assert (runs[:, 3] > 0).all()


def tokens_of_cp(runs: IntArray, cp_rank: int, group: Group) -> list[int]:
    """The tokens of all sequence-parallel ranks of a cp rank."""
    return [t for s in range(group.sp) for t in tokens_of(runs, cp_rank * group.sp + s).tolist()]


def loads(runs: IntArray, cu_seqlens: Sequence[int], cp: int) -> tuple[list[int], list[int]]:
    """Tokens, and pairs of query and key under a causal mask (twice, less the diagonal), of each rank."""
    tokens, pairs = [], []
    starts = np.asarray(cu_seqlens)
    for rank in range(cp):
        held = tokens_of(runs, rank)
        position = held - starts[np.searchsorted(starts, held, side="right") - 1]
        tokens.append(len(held))
        pairs.append(int((2 * position + 1).sum()))
    return tokens, pairs


def holders(runs: IntArray, cu_seqlens: Sequence[int], cp: int) -> list[set[int]]:
    """For each document the ranks that have some of it."""
    owner = {token: rank for rank in range(cp) for token in tokens_of(runs, rank).tolist()}
    return [{owner[token] for token in range(start, end)} for start, end in itertools.pairwise(cu_seqlens)]
