"""What one microbatch asks of context-parallel attention: whose keys this rank's queries meet, which rows travel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetsched.kernels.attention.ranges import KeyRanges, MaskKind, Span
from hetsched.kernels.attention.task import AttentionTask
from hetsched.layout.pulls import PullPlan, plan_pulls
from hetsched.layout.tokens import IntArray, check_map, tokens_of
from hetsched.parallel.meter import UNMEASURED, Meter

Way = Literal["pull", "ring", "ulysses"]


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
    """All keys that this rank's queries see, in one stage that copies fill.

    Args:
        attention: this rank's queries over the rows of the stage.
        plan: who pulls what.
        own_places, needs: the plan's, on the device.
    """

    attention: AttentionTask
    plan: PullPlan
    own_places: Tensor
    needs: Tensor


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
    heads_of_part: int = 0
    meter: Meter = UNMEASURED

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.cp:
            raise ValueError(f"rank={self.rank}: expected one of the {self.cp} ranks of the group")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: a query sees at least itself; use window >= 1 or None")
        if self.forced == "ulysses" and not self._has_divisible_heads:
            heads = f"num_heads={self.num_heads} and num_kv_heads={self.num_kv_heads}"
            raise ValueError(f"forced='ulysses': cp={self.cp} does not divide {heads}; use 'ring' or None")
        if self.forced == "pull" and not self.heads_of_part:
            raise ValueError("forced='pull': heads_of_part=0 says that ranks cannot pull here; use 'ring' or None")
        try:
            check_map(self.token_map, num_ranks=self.cp, num_tokens=self.cu_seqlens[-1])
        except ValueError as error:
            raise ValueError(f"token_map: {error}") from None
        for rank, tokens in enumerate(self._held):
            if np.any(np.diff(tokens) <= 0):
                raise ValueError(f"token_map: rank {rank}'s rows are not in the order of the sequence")

    @cached_property
    def way(self) -> Way:
        """How the group communicates: keys to queries, pulled or in a ring, or rows for heads (Ulysses).

        Pulling hides nearly all of its copies. The ring hides its messages behind the steps, so it is taken where
        it and Ulysses, in which all rows travel, move as much. A rank without rows need not be called for it, so it is
        taken there, too, and where nothing travels, because then nobody waits for anybody.
        """
        if self.forced is not None:
            return self.forced
        if self.heads_of_part and 0 not in self.rows_of_rank and self._has_cuts:
            return "pull"
        all_heads = self.num_heads + self.num_kv_heads
        # the ring moves at most this much, and often far less: rows that nobody else sees stay
        if not self._has_divisible_heads or 0 in self.rows_of_rank or self.cp * self.num_kv_heads <= all_heads:
            return "ring"
        pairs = itertools.permutations(self._held, 2)
        ring_rows = sum(int(self._is_seen(keys, queries=queries).sum()) for queries, keys in pairs)
        moved_rows = sum(self.rows_of_rank) * (self.cp - 1)
        return "ulysses" if ring_rows * self.cp * self.num_kv_heads > moved_rows * all_heads else "ring"

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Step s is with the ranks s before and s after this one, so that all ranks are busy in every step."""
        own = self._held[self.rank]
        everything = torch.arange(len(own), device=self.device)
        result = [Step(self.rank, self.rank, len(own), self._attention(own, own), everything)]
        for step in range(1, self.cp):
            source, target = (self.rank - step) % self.cp, (self.rank + step) % self.cp
            keys = self._held[source]
            keys = keys[self._is_seen(keys, queries=own)]
            sent = np.flatnonzero(self._is_seen(own, queries=self._held[target]))
            rows = torch.from_numpy(sent).to(self.device)
            result.append(Step(source, target, len(keys), self._attention(own, keys), rows))
        return tuple(result)

    @cached_property
    def whole(self) -> Whole:
        """For Ulysses: all rows over this rank's heads."""
        tokens = np.concatenate(self._held)
        heads = {"num_heads": self.num_heads // self.cp, "num_kv_heads": self.num_kv_heads // self.cp}
        everything = np.arange(len(tokens))
        attention = AttentionTask(self._ranges(everything, everything), **heads, device=self.device)
        places = (torch.from_numpy(x).to(self.device) for x in (np.argsort(tokens), tokens))
        return Whole(attention, *places)

    @cached_property
    def pulled(self) -> Pulled:
        """For pulling: this rank's rows over all the keys that they see."""
        num_parts = self.num_kv_heads // self.heads_of_part
        staged = [self._staged(rank) for rank in range(self.cp)]
        owner = np.zeros(self.cu_seqlens[-1], np.int64)
        for rank, tokens in enumerate(self._held):
            owner[tokens] = rank
        plan = plan_pulls(staged, self._bounds, owner, rank=self.rank, num_parts=num_parts)
        ranges = self._ranges(self._held[self.rank], plan.tokens)
        spans = tuple(replace(span, k_start=int(plan.places[span.k_start])) for span in ranges.spans)
        ranges = replace(ranges, spans=spans, num_key_rows=plan.num_rows)
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
        on_device = (torch.from_numpy(x).to(self.device) for x in (plan.own_places, plan.needs))
        return Pulled(AttentionTask(ranges, **heads, device=self.device), plan, *on_device)

    @cached_property
    def rows_of_rank(self) -> list[int]:
        """How many rows each rank has."""
        return [len(tokens) for tokens in self._held]

    @cached_property
    def has_messages(self) -> bool:
        """Whether this rank sends or receives anything in the ring."""
        return any(step.num_rows or len(step.sent) for step in self.steps[1:])

    @cached_property
    def receives(self) -> bool:
        """Whether this rank's queries see keys of other ranks."""
        return any(step.num_rows for step in self.steps[1:])

    @property
    def _has_cuts(self) -> bool:
        """Whether any rank's queries see keys of another."""
        pairs = itertools.permutations(self._held, 2)
        return any(bool(self._is_seen(keys, queries=queries).any()) for queries, keys in pairs)

    @property
    def _has_divisible_heads(self) -> bool:
        return self.num_heads % self.cp == 0 and self.num_kv_heads % self.cp == 0

    @cached_property
    def _held(self) -> tuple[IntArray, ...]:
        return tuple(tokens_of(self.token_map, rank) for rank in range(self.cp))

    @cached_property
    def _bounds(self) -> IntArray:
        return np.asarray(self.cu_seqlens, np.int64)

    def _staged(self, rank: int) -> IntArray:
        """The tokens of a rank's stage: its own and those that its queries see."""
        own = self._held[rank]
        others = (keys for other, keys in enumerate(self._held) if other != rank)
        return np.sort(np.concatenate([own, *(keys[self._is_seen(keys, queries=own)] for keys in others)]))

    def _is_seen(self, keys: IntArray, *, queries: IntArray) -> NDArray[np.bool_]:
        """Which keys some query sees: the first one that is not before the key is the only one to ask."""
        stop = self._bounds[np.searchsorted(self._bounds, keys, side="right")]
        if self.window is not None:
            stop = np.minimum(stop, keys + self.window)
        first = np.append(queries, self._bounds[-1])[np.searchsorted(queries, keys)]
        return first < stop

    def _attention(self, queries: IntArray, keys: IntArray) -> AttentionTask:
        ranges = self._ranges(queries, keys)
        return AttentionTask(ranges, num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, device=self.device)

    def _ranges(self, queries: IntArray, keys: IntArray) -> KeyRanges:
        """What :func:`hetsched.kernels.attention.ranges.sharded_ranges` gives, from tokens of all documents at once."""
        document = np.searchsorted(self._bounds, queries, side="right") - 1
        start = self._bounds[document]
        low = start if self.window is None else np.maximum(start, queries - self.window + 1)
        first = np.searchsorted(keys, start)
        lo, hi = np.searchsorted(keys, low) - first, np.searchsorted(keys, queries + 1) - first
        present = np.unique(document)
        q_ends, k_ends = (
            np.searchsorted(rows, self._bounds[[present, present + 1]]).T.tolist() for rows in (queries, keys)
        )
        spans = tuple(
            Span(q_start, q_stop - q_start, k_start, k_stop - k_start)
            for (q_start, q_stop), (k_start, k_stop) in zip(q_ends, k_ends, strict=True)
            if k_stop > k_start
        )
        is_causal = self.window is None and np.array_equal(queries, keys)
        kind: MaskKind = "causal" if is_causal else "ranges"
        return KeyRanges(spans, lo.astype(np.int32), hi.astype(np.int32), kind, len(queries), len(keys))
