"""Ranges against the definition of the mask, and work tables against the ranges, exhaustively on small documents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from hetsched.kernels.attention import work
from hetsched.kernels.attention.ranges import Block, packed_ranges, seen_by, sharded_ranges
from hetsched.kernels.attention.work import TileShape
from tests.kernels.attention_cases import dense

BLOCKS = ((), (Block(0, 2, 5),), (Block(0, 0, 3), Block(0, 4, 7), Block(1, 1, 2)))


def sees(query: int, key: int, window: int | None, blocks: list[Block]) -> bool:
    """The mask as one would say it: the past, cut by the window, and everything in the same block."""
    if any(block.start <= query < block.stop and block.start <= key < block.stop for block in blocks):
        return True
    return key <= query and (window is None or key > query - window)


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_ranges_are_the_mask_by_definition_for_every_shard(blocks: tuple[Block, ...], window: int | None) -> None:
    lengths = (7, 2, 0, 3)
    for pattern in itertools.product((0, 1), repeat=7):
        held = np.flatnonzero(pattern)
        query_positions = [held, np.arange(2), np.arange(0), np.arange(1, 3)]
        key_positions = [np.arange(7), np.arange(1), np.arange(0), np.arange(3)]
        for queries, keys in ((query_positions, key_positions), (key_positions, query_positions)):
            mask = dense(sharded_ranges(queries, keys, window=window, blocks=blocks))
            owner_q = [(d, int(p)) for d in range(len(lengths)) for p in queries[d]]
            owner_k = [(d, int(p)) for d in range(len(lengths)) for p in keys[d]]
            for (row, (doc, query)), (column, (other, key)) in itertools.product(
                enumerate(owner_q), enumerate(owner_k)
            ):
                own = [block for block in blocks if block.document == doc]
                assert mask[row, column] == (doc == other and sees(query, key, window, own))


def test_the_transposed_ranges_are_the_same_mask() -> None:
    for window, blocks in itertools.product((None, 2), BLOCKS):
        ranges = sharded_ranges(
            [np.array([1, 3, 4, 6]), np.arange(3)], [np.arange(7), np.arange(3)], window=window, blocks=blocks
        )
        first, stop = seen_by(ranges)
        mask = dense(ranges)
        for span in ranges.spans:
            for key in range(span.k_start, span.k_start + span.num_keys):
                rows = np.flatnonzero(mask[:, key]) - span.q_start
                assert list(rows) == list(range(first[key], stop[key]))


def visited(table: work.WorkTable, tile: NDArray[np.int32], step_of: int) -> list[tuple[int, bool]]:
    """(tile of the other side, is masked) in the order in which kernels visit them."""
    start, count, near, far = (int(tile[column]) for column in (work.START, work.COUNT, work.NEAR, work.FAR))
    result = []
    for step in range(count):
        if step < near:
            index = start + step_of * step
        elif step < near + far:
            index = start + step_of * (count - 1 - (step - near))
        else:
            index = start + step_of * (step - far)
        result.append((index, step < near + far))
    return result


@pytest.mark.parametrize("side", ["queries", "keys"])
@pytest.mark.parametrize("shape", [TileShape(4, 2), TileShape(2, 4), TileShape(3, 3)])
@pytest.mark.parametrize("window", [None, 3])
def test_tables_visit_every_seen_pair_once_and_mask_where_needed(
    side: str, shape: TileShape, window: int | None
) -> None:
    documents = [[*range(9)], [], [0], [0, 2, 3, 7, 8, 9], [5, 6]]
    positions = [np.array(rows, np.int64) for rows in documents]
    keys = [np.arange(9), np.arange(3), np.arange(2), np.arange(10), np.arange(4)]
    blocks = [Block(0, 2, 6), Block(3, 6, 9)]
    for ranges in (sharded_ranges(positions, keys, window=window, blocks=blocks), packed_ranges([9, 0, 1, 5])):
        mask = dense(ranges)
        is_query = side == "queries"
        table = (work.query_major if is_query else work.key_major)(ranges, shape, num_heads=3, num_workers=4)
        own, other = (shape.queries, shape.keys) if is_query else (shape.keys, shape.queries)
        seen = np.zeros_like(mask, dtype=int)
        for tile in table.tiles:
            rows = slice(tile[work.ROW], tile[work.ROW] + tile[work.NUM_ROWS])
            for index, is_masked in visited(table, tile, -1 if is_query else 1):
                first = tile[work.OTHER_ROW] + index * other
                columns = slice(first, min(first + other, tile[work.OTHER_ROW] + tile[work.NUM_OTHER]))
                part = (rows, columns) if is_query else (columns, rows)
                seen[part] += mask[part]
                if not is_masked:
                    assert mask[part].all()
                    assert not is_query or columns.stop - columns.start == other
        assert np.array_equal(seen, mask.astype(int))
        assert own > 0


def test_every_item_is_dealt_once_and_loads_are_level() -> None:
    lengths = [3000, 17, 1000, 0, 512, 512]
    ranges = packed_ranges(lengths)
    table = work.query_major(ranges, TileShape(128, 128), num_heads=8, num_workers=13)
    busy = np.flatnonzero(table.tiles[:, work.COUNT] > 0)
    expected = sorted(int(tile) * 8 + head for tile in busy for head in range(8))
    assert sorted(table.order.tolist()) == expected
    hands = [row[1 : 1 + row[0]].tolist() for row in table.workers]
    assert sorted(item for hand in hands for item in hand) == expected
    loads = [sum(int(table.tiles[item // 8, work.COUNT]) for item in hand) for hand in hands]
    assert max(loads) <= 1.1 * np.mean(loads)


def test_padded_rows_hold_each_query_once() -> None:
    ranges = packed_ranges([1, 0, 300, 128])
    blocks = work.pad_blocks(ranges)
    padded = [int(pad) + row for _, rows, pad in blocks for row in range(rows)]
    rows = [int(first) + row for first, num_rows, _ in blocks for row in range(num_rows)]
    assert rows == list(range(429))
    assert len(set(padded)) == 429
    assert max(padded) < work.num_padded_rows(ranges)
    assert all(pad % work.PAD == 0 for pad in blocks[:, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_causal": False, "window": 3}, "refine causal"),
        ({"window": 0}, "at least itself"),
        ({"blocks": [Block(4, 0, 1)]}, "no document"),
        ({"blocks": [Block(0, 3, 3)]}, "empty"),
        ({"blocks": [Block(0, 0, 3), Block(0, 2, 4)]}, "overlap"),
    ],
)
def test_contradictory_masks_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed_ranges([5, 5], **arguments)  # type: ignore[arg-type]


def test_unsorted_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="does not ascend"):
        sharded_ranges([np.array([1, 0])], [np.arange(2)])
