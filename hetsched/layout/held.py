"""What the ranks of a replica hold of a microbatch: its share, and the map of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetsched.batch import Item, Sample
from hetsched.layout.shares import Share
from hetsched.layout.tokens import IntArray, tokens_of


@dataclass(frozen=True, eq=False)
class Held:
    """What one replica works on in one microbatch of a module, and where its rows lie.

    Args:
        share: what it works on.
        tokens: a map of tokens from the replica's rows to its cp ranks, each of which has its rows in the order of the
            sequence; None where one cp rank has them all. The rows of a module that works on items are those that it
            makes of them, one item after the other; otherwise they are the positions of its packed sequence.
    """

    share: Share
    tokens: IntArray | None = None

    @property
    def cp_ranks(self) -> set[int]:
        """The cp ranks that have tokens."""
        return {0} if self.tokens is None else set(self.tokens[:, 0].tolist())

    def num_tokens(self, cp: int) -> int:
        """How many tokens of its sequences a cp rank of the replica has."""
        return self.share.num_tokens if self.tokens is None else int(self.tokens[self.tokens[:, 0] == cp, 3].sum())

    def positions(self, cp: int) -> IntArray:
        """Which tokens of its sequences those are, int64 ``[num_tokens]``."""
        return np.arange(self.share.num_tokens) if self.tokens is None else tokens_of(self.tokens, cp)

    def by_member(self, cp: int) -> Iterator[tuple[Sample | Item, IntArray, slice]]:
        """The members of which a cp rank has tokens: which positions of the member, and which of the rank's rows."""
        tokens, bounds = self.positions(cp), self.share.cu_seqlens
        firsts = np.searchsorted(tokens, bounds).tolist()
        for i, member in enumerate(self.share.members):
            if firsts[i] < firsts[i + 1]:
                rows = slice(firsts[i], firsts[i + 1])
                yield member, tokens[rows] - bounds[i], rows

    def num_rows(self, cp: int) -> int:
        """How many rows a cp rank of the replica makes."""
        return self.share.num_rows if self.tokens is None else self.num_tokens(cp)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    @property
    def _content(self) -> tuple[object, ...]:
        return self.share, None if self.tokens is None else self.tokens.tobytes()
