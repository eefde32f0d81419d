"""How the ranks of a context-parallel group see each other's keys, chosen by what travels and what hides it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from hetsched.layout.spread import Spread

Way = Literal["pull", "ring", "ulysses"]
WayBack = Literal["pull", "ring"]

PAIRS_HIDING_A_ROW = 1000
"""Pairs of a query and a key for each pulled row of queries and output gradients whose dq hides its copy: 6 * D
operations a pair at 450 TFLOP/s, 4 * D bytes a row at 300 GB/s, in each head."""
LONGEST_IN_CACHE = 65536
"""Tokens of a document whose queries and output gradients of one head, 512 bytes a token at head dim 128, stay in the
L2 cache of an H200 while dk and dv are made of them."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of an attention module.

    Args:
        queries, keys: numbers of heads.
        of_part: heads of keys that are pulled together; 0 where ranks cannot pull.
    """

    queries: int
    keys: int
    of_part: int = 0

    def are_divisible(self, cp: int) -> bool:
        """Whether each of ``cp`` ranks can have as many heads."""
        return self.queries % cp == 0 and self.keys % cp == 0


def choose_way(spread: Spread, heads: Heads) -> Way:
    """The way forward: keys to queries, pulled or in a ring, or rows for heads (Ulysses).

    Pulling hides nearly all of its copies. The ring hides its messages behind the steps, so it is taken where it and
    Ulysses, in which all rows travel, move as much. A rank without rows need not be called for it, so it is taken
    there, too, and where nothing travels, because then nobody waits for anybody.
    """
    has_empty = 0 in spread.rows_of_rank
    if heads.of_part and not has_empty and spread.has_cuts:
        return "pull"
    all_heads = heads.queries + heads.keys
    # the ring moves at most this much, and often far less: rows that nobody else sees stay
    if not heads.are_divisible(spread.cp) or has_empty or spread.cp * heads.keys <= all_heads:
        return "ring"
    pairs = itertools.permutations(range(spread.cp), 2)
    ring_rows = sum(int(spread.seen_of(*pair).sum()) for pair in pairs)
    moved_rows = sum(spread.rows_of_rank) * (spread.cp - 1)
    return "ulysses" if ring_rows * spread.cp * heads.keys > moved_rows * all_heads else "ring"


def choose_way_back(spread: Spread, heads: Heads) -> WayBack:
    """The way of the backward after a pulled forward.

    Pulled, rows of keys and values travel once more, then rows of queries and of the output's gradient, 16 bits each;
    in the ring the former, and two partial gradients of 32 bits come back. Where the ring moves less, because many
    query heads share a key head, it is taken if dq does not hide the copies of queries, and if a document is so long
    that its queries leave the cache: measured at 8:1 heads, pulling wins at 32k tokens and loses at 128k.
    """
    if 2 * heads.keys >= heads.queries:
        return "pull"
    pulled_rows = sum(len(tokens) for tokens in spread.met_queries) - sum(spread.rows_of_rank)
    is_hidden = spread.num_pairs >= PAIRS_HIDING_A_ROW * pulled_rows
    return "pull" if is_hidden and spread.longest <= LONGEST_IN_CACHE else "ring"
