"""Documents spread over context-parallel ranks: whose queries see whose keys, and so which rows travel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hetsched.layout.tokens import IntArray, check_map, documents_of, tokens_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SeenKeys:
    """What some queries see of some keys, both ascending runs of tokens.

    Args:
        spans: int64 ``[num_documents, 4]``: first query and number of queries, first key and number of keys, of each
            document that has some of both.
        lo, hi: int32 ``[num_queries]``, the keys that each query sees, counted from its document's first.
        is_causal: queries and keys are the same tokens, and nothing but causality hides any.
    """

    spans: IntArray
    lo: NDArray[np.int32]
    hi: NDArray[np.int32]
    is_causal: bool


@dataclass(frozen=True, eq=False)
class Spread:
    """Who keeps which tokens of a microbatch's documents; a query sees itself and what is before it in its document.

    Args:
        cu_seqlens: boundaries of the documents, from 0.
        token_map: which rank keeps which tokens, see hetsched.layout.tokens; each rank's rows are in the order of the
            sequence. Any cuts will do, and a rank may have no rows.
        cp: ranks of the group.
        window: a query sees at most itself and the ``window - 1`` positions before it; None is unlimited.

    Raises:
        ValueError: a map that does not hold each token once, or a rank's rows that are not in order; a window below 1.
    """

    cu_seqlens: Sequence[int]
    token_map: IntArray
    cp: int
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: a query sees at least itself; use window >= 1 or None")
        try:
            check_map(self.token_map, num_ranks=self.cp, num_tokens=self.cu_seqlens[-1])
        except ValueError as error:
            raise ValueError(f"token_map: {error}") from None
        for rank, tokens in enumerate(self.held):
            if np.any(np.diff(tokens) <= 0):
                raise ValueError(f"token_map: rank {rank}'s rows are not in the order of the sequence")

    @cached_property
    def held(self) -> tuple[IntArray, ...]:
        """Each rank's tokens."""
        return tuple(tokens_of(self.token_map, rank) for rank in range(self.cp))

    @cached_property
    def rows_of_rank(self) -> list[int]:
        """How many rows each rank has."""
        return [len(tokens) for tokens in self.held]

    @cached_property
    def bounds(self) -> IntArray:
        """``cu_seqlens``."""
        return np.asarray(self.cu_seqlens, np.int64)

    @cached_property
    def owner(self) -> IntArray:
        """The rank that keeps each token."""
        result = np.zeros(self.cu_seqlens[-1], np.int64)
        for rank, tokens in enumerate(self.held):
            result[tokens] = rank
        return result

    @cached_property
    def has_cuts(self) -> bool:
        """Whether any rank's queries see keys of another."""
        return any(self.seen_of(*pair).any() for pair in itertools.permutations(range(self.cp), 2))

    @cached_property
    def num_pairs(self) -> int:
        """Pairs of a query and a key that it sees, in all documents."""
        return int(sum(self._pairs(length) for length in np.diff(self.bounds).tolist()))

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(np.diff(self.bounds).max(initial=0))

    @cached_property
    def met_keys(self) -> tuple[IntArray, ...]:
        """For each rank its own tokens and those whose keys its queries see, ascending."""
        return tuple(self._with_others(rank, by_queries=True) for rank in range(self.cp))

    @cached_property
    def met_queries(self) -> tuple[IntArray, ...]:
        """For each rank its own tokens and those whose queries see its keys, ascending."""
        return tuple(self._with_others(rank, by_queries=False) for rank in range(self.cp))

    def seen_of(self, rank: int, other: int) -> Mask:
        """Which of another rank's rows are keys that a rank's queries see; made once."""
        if (rank, other) not in self._seen:
            self._seen[rank, other] = self.seen(self.held[other], queries=self.held[rank])
        return self._seen[rank, other]

    def seen(self, keys: IntArray, *, queries: IntArray) -> Mask:
        """Which keys some query sees: the first one that is not before the key is the only one to ask."""
        stop = self.bounds[documents_of(keys, self.bounds) + 1]
        if self.window is not None:
            stop = np.minimum(stop, keys + self.window)
        first = np.append(queries, self.bounds[-1])[np.searchsorted(queries, keys)]
        return first < stop

    def seeing(self, queries: IntArray, *, keys: IntArray) -> Mask:
        """Which queries see some key: the last one that is not behind the query is the only one to ask."""
        last = np.append(-1, keys)[np.searchsorted(keys, queries, side="right")]
        return last >= self._first_seen(queries)

    def seen_keys(self, queries: IntArray, keys: IntArray) -> SeenKeys:
        """What ``queries`` see of ``keys``."""
        q_ends, k_ends = (np.searchsorted(rows, self.bounds) for rows in (queries, keys))
        first = np.repeat(k_ends[:-1], np.diff(q_ends))
        lo = 0 * first if self.window is None else np.searchsorted(keys, self._first_seen(queries)) - first
        hi = np.searchsorted(keys, queries, side="right") - first
        spans = np.stack([q_ends[:-1], np.diff(q_ends), k_ends[:-1], np.diff(k_ends)], axis=1)
        has_both = (spans[:, 1] > 0) & (spans[:, 3] > 0)
        is_causal = self.window is None and np.array_equal(queries, keys)
        return SeenKeys(spans[has_both], lo.astype(np.int32), hi.astype(np.int32), is_causal)

    def _first_seen(self, queries: IntArray) -> IntArray:
        start = self.bounds[documents_of(queries, self.bounds)]
        return start if self.window is None else np.maximum(start, queries - self.window + 1)

    @cached_property
    def _seen(self) -> dict[tuple[int, int], Mask]:
        return {}

    def _with_others(self, rank: int, *, by_queries: bool) -> IntArray:
        own, parts = self.held[rank], [self.held[rank]]
        for other, tokens in enumerate(self.held):
            if other != rank:
                is_met = self.seen_of(rank, other) if by_queries else self.seeing(tokens, keys=own)
                parts.append(tokens[is_met])
        return np.sort(np.concatenate(parts))

    def _pairs(self, length: int) -> int:
        window = min(length, self.window or length)
        return window * (window + 1) // 2 + (length - window) * window
