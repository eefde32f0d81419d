"""Tasks of context-parallel attention against the mask by definition: what ranks compute, and which rows travel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hetsched.kernels.attention.ranges import sharded_ranges
from hetsched.layout.spread import SeenKeys, Spread
from hetsched.layout.tokens import IntArray, tokens_of
from hetsched.parallel.context_task import ContextTask, shared_task
from tests.dist.context_cases import ContextCase
from tests.dist.context_work import task_of
from tests.kernels.attention_cases import dense


def mask_of(case: ContextCase) -> NDArray[np.bool_]:
    """Which token sees which, token by token."""
    total = sum(case.lengths)
    document = np.repeat(np.arange(len(case.lengths)), case.lengths)
    distance = np.arange(total)[:, None] - np.arange(total)[None, :]
    return (document[:, None] == document) & (distance >= 0) & (distance < (case.window or total + 1))


def by_document(case: ContextCase, tokens: IntArray) -> list[IntArray]:
    """The positions of some tokens in each document."""
    bounds = np.array(case.cu_seqlens)
    return [tokens[(tokens >= a) & (tokens < b)] - a for a, b in itertools.pairwise(bounds)]


CASES = [
    ContextCase((0, 7, 30, 1, 0, 21), cp, kind, window=window, seed=seed)
    for cp in (1, 2, 3, 5)
    for kind, seed in (("zigzag", 0), ("planned", 0), ("one rank", 0), ("random", 1), ("random", 2))
    for window in (None, 1, 4)
]


def assert_steps_are_the_mask(case: ContextCase) -> None:
    """Together the steps of all ranks compute every pair of the mask, and rows travel that somebody sees."""
    mask, tasks = mask_of(case), [task_of(case, rank) for rank in range(case.cp)]
    for rank, task in enumerate(tasks):
        own = tokens_of(case.token_map, rank)
        for number, step in enumerate(task.steps):
            assert (step.source, step.target) == ((rank - number) % case.cp, (rank + number) % case.cp)
            sender = tasks[step.source].steps[number]
            keys = tokens_of(case.token_map, step.source)[sender.sent.numpy()]
            ranges = step.attention.ranges
            assert step.num_rows == len(keys)
            assert np.array_equal(dense(ranges), mask[np.ix_(own, keys)])
            if number:
                seen = mask[np.ix_(own, tokens_of(case.token_map, step.source))].any(axis=0)
                assert np.array_equal(np.flatnonzero(seen), sender.sent.numpy())
            expected = sharded_ranges(by_document(case, own), by_document(case, keys), window=case.window)
            assert np.array_equal(dense(expected), dense(ranges))
            has_gone_back = [np.diff(x[s.q_start : s.q_start + s.num_queries]) < 0
                             for s in ranges.spans for x in (ranges.lo, ranges.hi)]  # fmt: skip
            assert not np.any(np.concatenate([np.zeros(0, bool), *has_gone_back]))
            assert ranges.kind == ("causal" if number == 0 and case.window is None else expected.kind)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.cp} {case.map_kind} {case.seed} {case.window}")
def test_steps_are_the_mask_and_only_seen_rows_travel(case: ContextCase) -> None:
    assert_steps_are_the_mask(case)


def _one_key_less(original: Any) -> Any:
    def mutated(self: Spread, queries: IntArray, keys: IntArray) -> SeenKeys:
        seen = original(self, queries, keys)
        return replace(seen, hi=np.maximum(seen.lo, seen.hi - 1))

    return mutated


def _all_rows_travel(original: Any) -> Any:
    return lambda self, keys, queries: np.ones(len(keys), bool)


def _rows_in_a_wider_window_travel(original: Any) -> Any:
    return lambda self, keys, queries: original(replace(self, window=self.window + 1), keys, queries=queries)


@pytest.mark.parametrize(
    ("method", "mutate"),
    [("seen_keys", _one_key_less), ("seen", _all_rows_travel), ("seen", _rows_in_a_wider_window_travel)],
)
def test_a_wrong_mask_or_rows_that_nobody_sees_would_be_seen(
    method: str, mutate: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ContextCase((40, 9), 3, "zigzag", window=5)
    assert_steps_are_the_mask(case)
    monkeypatch.setattr(Spread, method, mutate(getattr(Spread, method)))
    with pytest.raises(AssertionError):
        assert_steps_are_the_mask(case)


def _exchanged(runs: IntArray, order: list[int]) -> IntArray:
    """The map in which a rank's runs have other places."""
    runs = runs[order]
    for rank in np.unique(runs[:, 0]):
        mine = runs[:, 0] == rank
        runs[mine, 1] = np.cumsum(runs[mine, 3]) - runs[mine, 3]
    return runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[:-1], "token_map: token .* of 20 has no holder"),
        (lambda runs: np.add(runs, [0, 0, 1, 0]), "has no holder"),
        (lambda runs: np.add(runs, [2, 0, 0, 0]), "ranks 0 to 1"),
        (lambda runs: np.add(runs, [0, 1, 0, 0]), "one behind the other"),
        (lambda runs: np.multiply(runs, [0, 1, 1, 1]), "one behind the other"),
        (lambda runs: _exchanged(runs, [1, 0, 2]), "rank 0's rows are not in the order of the sequence"),
    ],
)
def test_a_map_that_is_not_a_partition_in_order_is_refused(
    change: Callable[[IntArray], IntArray], message: str
) -> None:
    case = ContextCase((20,), 2, "zigzag")
    with pytest.raises(ValueError, match=message):
        ContextTask(case.cu_seqlens, change(case.token_map), rank=0, cp=2, num_heads=2, num_kv_heads=1)


def test_ulysses_is_chosen_where_it_moves_fewer_bytes() -> None:
    def way(case: ContextCase) -> str:
        return task_of(replace(case, forced=None), 0).way

    # of dense documents the ring moves cp * K / (H + K) times as much
    assert way(ContextCase((800,), 4, "zigzag", (8, 8))) == "ulysses"
    assert way(ContextCase((800,), 2, "zigzag", (8, 8))) == "ring"
    assert way(ContextCase((800,), 4, "zigzag", (16, 4))) == "ring"
    assert way(ContextCase((800,), 8, "zigzag", (16, 8))) == "ulysses"
    # and less where few rows are seen elsewhere
    assert way(ContextCase((800,), 4, "zigzag", (8, 8), window=10)) == "ring"
    assert way(ContextCase((200, 200, 200, 200), 4, "planned", (8, 8))) == "ring"
    # heads cannot be dealt out
    assert way(ContextCase((800,), 4, "zigzag", (6, 6))) == "ring"
    with pytest.raises(ValueError, match="cp=4 does not divide"):
        task_of(ContextCase((800,), 4, "zigzag", (6, 6), forced="ulysses"), 0)


def test_a_rank_outside_the_group_and_an_empty_window_are_refused() -> None:
    case = ContextCase((20,), 2, "zigzag")
    with pytest.raises(ValueError, match="rank=2"):
        task_of(case, 2)
    with pytest.raises(ValueError, match="window=0"):
        task_of(replace(case, window=0), 0)


def test_keys_are_pulled_where_ranks_can_and_any_row_travels() -> None:
    def way(case: ContextCase) -> str:
        return replace(task_of(replace(case, forced=None), 0), heads_of_part=2).way

    assert way(ContextCase((800,), 4, "zigzag", (8, 8))) == "pull"
    assert way(ContextCase((200, 200, 200, 200), 4, "planned", (8, 8))) == "ring"
    # a rank without rows is not called
    assert way(ContextCase((800,), 4, "one rank", (4, 2))) == "ring"
    with pytest.raises(ValueError, match="cannot pull"):
        replace(task_of(ContextCase((800,), 4), 0), forced="pull")


def test_the_backward_pulls_where_that_moves_less_or_its_copies_are_hidden() -> None:
    def way_back(case: ContextCase, **options: Any) -> str:
        return replace(task_of(replace(case, forced="pull"), 0), **options).way_back

    assert way_back(ContextCase((800,), 4, "zigzag", (8, 8))) == "pull"
    # of short documents one query meets few keys, and eight query heads travel for one of keys
    assert way_back(ContextCase((800,), 4, "zigzag", (8, 1))) == "ring"
    assert way_back(ContextCase((32_000,), 4, "zigzag", (8, 1))) == "pull"
    assert way_back(ContextCase((32_000,), 4, "zigzag", (8, 1)), forced_back="ring") == "ring"
    assert way_back(ContextCase((800,), 4, "zigzag", (8, 1)), forced_back="pull") == "pull"
    assert task_of(ContextCase((800,), 4, "zigzag", (8, 8)), 0).way_back == "ring"


def test_calls_of_a_microbatch_share_one_task() -> None:
    case = ContextCase((300, 500), 2, "zigzag")
    options: dict[str, Any] = {"rank": 0, "cp": 2, "num_heads": 4, "num_kv_heads": 2}
    first = shared_task(case.cu_seqlens, case.token_map, **options)
    assert shared_task(list(case.cu_seqlens), case.token_map.copy(), **options) is first
    assert first.steps is shared_task(case.cu_seqlens, case.token_map, **options).steps
    others = [options | {"rank": 1}, options | {"num_heads": 8}, options | {"window": 9}]
    assert all(shared_task(case.cu_seqlens, case.token_map, **other) is not first for other in others)
    other_cuts = replace(case, map_kind="planned")
    assert shared_task(case.cu_seqlens, other_cuts.token_map, **options) is not first
