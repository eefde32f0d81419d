"""What one microbatch asks of context-parallel attention: whose keys this rank's queries meet, which rows travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hetsched.kernels.attention.ranges import KeyRanges, Span
from hetsched.kernels.attention.task import AttentionTask
from hetsched.layout.pulls import PullPlan, plan_pulls
from hetsched.layout.spread import SeenKeys, Spread
from hetsched.layout.tokens import IntArray
from hetsched.layout.ways import Heads, Way, WayBack, choose_way, choose_way_back
from hetsched.parallel.meter import UNMEASURED, Meter

_MOST_TASKS = 32
"""Microbatches whose tasks are kept: those in flight, each of which all stages of a rank meet."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Key rows come from rank ``source`` while some of this rank's go to rank ``target``.

    In the first step both are this rank itself, and all its rows are its own already.

    Args:
        source, target: ranks of the group.
        num_rows: rows that come, only those that some query here sees; 0 means no message.
        attention: this rank's queries over them.
        sent: int64, the local rows that go, ascending; none means no message.
    """

    source: int
    target: int
    num_rows: int
    attention: AttentionTask
    sent: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """The whole sequence on every rank, for ``1 / cp`` of the heads.

    Args:
        attention: of all documents.
        place_of_token: int64, where each token's row is when rows lie by rank.
        token_in_place: int64, its inverse.
    """

    attention: AttentionTask
    place_of_token: Tensor
    token_in_place: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pulled:
    """Rows that this rank pulls into one stage, among its own.

    Args:
        attention: this rank's queries over the keys, or the queries over this rank's keys: rows of the stage, then own.
        plan: who pulls what.
        own, needs: the plan's, on the device.
        runs: the plan's, on the host.
    """

    attention: AttentionTask
    plan: PullPlan
    own: Tensor
    needs: Tensor
    runs: Tensor


@dataclass(frozen=True, eq=False)
class ContextTask:
    """Made once per microbatch from integers, alike on every rank, and shared by all layers with the same head counts.

    Nothing is communicated to make it. Its parts are made when they are first asked for.

    Args:
        cu_seqlens: boundaries of the microbatch's documents, from 0.
        token_map: which rank of the group keeps which tokens, see hetsched.layout.tokens. Each rank's rows are in the
            order of the sequence; any cuts will do, and a rank may have no rows.
        rank: this one's in the group.
        cp: ranks of the group.
        num_heads, num_kv_heads: of queries and of keys.
        device: where attention is computed.
        window: a query sees itself and the ``window - 1`` positions before it; None is unlimited.
        forced: the way to communicate; None is to pull where ranks can, otherwise what moves fewer bytes.
        forced_back: the way of the backward where the forward pulls; None is what hides more.
        heads_of_part: heads of keys that are pulled together where ranks can pull, otherwise 0: see
            :func:`hetsched.parallel.pull.where_possible`.
        meter: is told of the messages.

    Raises:
        ValueError: a map that does not hold each token once, or a rank's rows that are not in order; a window below 1;
            a rank that is not in the group; Ulysses forced where cp does not divide both numbers of heads, or
            pulling where ranks cannot.
    """

    cu_seqlens: Sequence[int]
    token_map: IntArray
    _: KW_ONLY
    rank: int
    cp: int
    num_heads: int
    num_kv_heads: int
    device: torch.device | str = "cpu"
    window: int | None = None
    forced: Way | None = None
    forced_back: WayBack | None = None
    heads_of_part: int = 0
    meter: Meter = UNMEASURED

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.cp:
            raise ValueError(f"rank={self.rank}: expected one of the {self.cp} ranks of the group")
        if self.forced == "ulysses" and not self._heads.are_divisible(self.cp):
            heads = f"num_heads={self.num_heads} and num_kv_heads={self.num_kv_heads}"
            raise ValueError(f"forced='ulysses': cp={self.cp} does not divide {heads}; use 'ring' or None")
        if self.forced == "pull" and not self.heads_of_part:
            raise ValueError("forced='pull': heads_of_part=0 says that ranks cannot pull here; use 'ring' or None")
        _ = self.spread  # which checks the rest

    @cached_property
    def spread(self) -> Spread:
        """Who keeps which tokens, and sees whose."""
        return Spread(self.cu_seqlens, self.token_map, self.cp, self.window)

    @cached_property
    def way(self) -> Way:
        """How the group communicates: keys to queries, pulled or in a ring, or rows for heads (Ulysses)."""
        return self.forced or choose_way(self.spread, self._heads)

    @cached_property
    def way_back(self) -> Way:
        """The way of the backward."""
        if self.way != "pull":
            return self.way
        return self.forced_back or choose_way_back(self.spread, self._heads)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Step s is with the ranks s before and s after this one, so that all ranks are busy in every step."""
        spread, own = self.spread, self.spread.held[self.rank]
        everything = torch.arange(len(own), device=self.device)
        result = [Step(self.rank, self.rank, len(own), self._attention(own, own), everything)]
        for step in range(1, self.cp):
            source, target = (self.rank - step) % self.cp, (self.rank + step) % self.cp
            keys = spread.held[source][spread.seen_of(self.rank, source)]
            sent = np.flatnonzero(spread.seen_of(target, self.rank))
            rows = torch.from_numpy(sent).to(self.device)
            result.append(Step(source, target, len(keys), self._attention(own, keys), rows))
        return tuple(result)

    @cached_property
    def whole(self) -> Whole:
        """For Ulysses: all rows over this rank's heads."""
        tokens = np.concatenate(self.spread.held)
        heads = {"num_heads": self.num_heads // self.cp, "num_kv_heads": self.num_kv_heads // self.cp}
        everything = np.arange(len(tokens))
        ranges = _ranges(self.spread.seen_keys(everything, everything), len(tokens), len(tokens))
        attention = AttentionTask(ranges, **heads, device=self.device)
        places = (torch.from_numpy(x).to(self.device) for x in (np.argsort(tokens), tokens))
        return Whole(attention, *places)

    @cached_property
    def pulled(self) -> Pulled:
        """For pulling keys: this rank's rows over all the keys that they see."""
        spread, own = self.spread, self.spread.held[self.rank]
        num_parts = self.num_kv_heads // self.heads_of_part
        plan = plan_pulls(spread.met_keys, spread.bounds, spread.owner, rank=self.rank, num_parts=num_parts)
        seen = spread.seen_keys(own, plan.tokens)
        # a document's rows stay together, in the stage or behind it
        seen.spans[:, 2] = plan.places[seen.spans[:, 2]]
        return self._pulled(plan, _ranges(seen, len(own), plan.num_rows + len(own)))

    @cached_property
    def pulled_back(self) -> Pulled:
        """For pulling queries: all that see this rank's keys, over these."""
        spread, own = self.spread, self.spread.held[self.rank]
        plan = plan_pulls(spread.met_queries, spread.bounds, spread.owner, rank=self.rank, num_parts=1)
        seen = spread.seen_keys(plan.tokens, own)
        seen.spans[:, 0] = plan.places[seen.spans[:, 0]]
        num_rows = plan.num_rows + len(own)
        lo, hi = np.zeros((2, num_rows), np.int32)
        lo[plan.places], hi[plan.places] = seen.lo, seen.hi
        placed = SeenKeys(seen.spans, lo, hi, is_causal=False)
        return self._pulled(plan, _ranges(placed, num_rows, len(own)))

    @property
    def rows_of_rank(self) -> list[int]:
        """How many rows each rank has."""
        return self.spread.rows_of_rank

    @cached_property
    def has_messages(self) -> bool:
        """Whether this rank sends or receives anything in the ring."""
        return any(step.num_rows or len(step.sent) for step in self.steps[1:])

    @cached_property
    def receives(self) -> bool:
        """Whether this rank's queries see keys of other ranks."""
        return any(step.num_rows for step in self.steps[1:])

    @property
    def _heads(self) -> Heads:
        return Heads(self.num_heads, self.num_kv_heads, self.heads_of_part)

    def _attention(self, queries: IntArray, keys: IntArray) -> AttentionTask:
        ranges = _ranges(self.spread.seen_keys(queries, keys), len(queries), len(keys))
        return AttentionTask(ranges, num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, device=self.device)

    def _pulled(self, plan: PullPlan, ranges: KeyRanges) -> Pulled:
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
        own, needs = (torch.from_numpy(x).to(self.device) for x in (plan.own, plan.needs))
        attention = AttentionTask(ranges, **heads, device=self.device)
        return Pulled(attention, plan, own, needs, torch.from_numpy(plan.runs))


def shared_task(cu_seqlens: Sequence[int], token_map: IntArray, **options: Any) -> ContextTask:
    """The task of these integers, made when they are first met: calls of all stages of a microbatch share it.

    Args:
        cu_seqlens, token_map: of the microbatch.
        options: the keyword arguments of :class:`ContextTask`.
    """
    return _task(tuple(cu_seqlens), token_map.tobytes(), **options)


@lru_cache(_MOST_TASKS)
def _task(cu_seqlens: tuple[int, ...], token_map: bytes, **options: Any) -> ContextTask:
    return ContextTask(cu_seqlens, np.frombuffer(token_map, np.int64).reshape(-1, 4), **options)


def _ranges(seen: SeenKeys, num_queries: int, num_keys: int) -> KeyRanges:
    """What kernels know of masks."""
    spans = tuple(Span(*span) for span in seen.spans.tolist())
    return KeyRanges(spans, seen.lo, seen.hi, "causal" if seen.is_causal else "ranges", num_queries, num_keys)
