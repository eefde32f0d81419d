"""Stages of keys and of queries: own rows where the plan says, statistics as they were, and nothing else written."""

from __future__ import annotations

import torch

from hetsched.kernels.attention import staging
from hetsched.kernels.attention.ranges import sharded_ranges
from hetsched.kernels.attention.task import AttentionTask
from hetsched.kernels.attention.triton import padded_statistics

NUM_ROWS, STAGE_ROWS = 150, 384


def own_rows() -> torch.Tensor:
    """Which rows go where: some stay, and places are not in order of anything."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(NUM_ROWS, generator=generator)[:137]
    return torch.stack([rows, torch.randperm(STAGE_ROWS, generator=generator)[:137]]).int()


def test_keys_and_values_lie_side_by_side_in_parts() -> None:
    k, v = torch.randn(2, NUM_ROWS, 6, 64).half()
    own, stage = own_rows(), torch.full((3, STAGE_ROWS, 2, 2, 64), torch.nan, dtype=torch.float16)
    staging.fill(stage, k, v, own)
    expected = torch.full_like(stage, torch.nan)
    rows, places = own.long()
    for part in range(3):
        for i, x in enumerate((k, v)):
            expected[part, places, i] = x[rows, 2 * part : 2 * part + 2]
    torch.testing.assert_close(stage, expected, rtol=0, atol=0, equal_nan=True)


def test_queries_travel_with_their_statistics() -> None:
    for num_heads in (1, 3, 8):
        q, dout = torch.randn(2, NUM_ROWS, num_heads, 64).half()
        lse, delta = torch.randn(2, num_heads, NUM_ROWS)
        own = own_rows()
        rows, places = own.long()
        columns = staging.query_columns(num_heads, 64)
        assert columns % 8 == 0
        stage = torch.full((STAGE_ROWS, columns), torch.nan, dtype=torch.float16)
        staging.fill_queries(stage, q, dout, own, statistics=(lse, delta))
        staged = staging.StagedQueries.of(stage, num_heads=num_heads, head_dim=64)
        for view, x in ((staged.q, q), (staged.dout, dout)):
            assert torch.equal(view[places], x[rows])
        for view, x in ((staged.lse, lse), (staged.delta, delta)):
            assert view.shape == (num_heads, STAGE_ROWS)
            assert torch.equal(view[:, places], x[:, rows])
        is_free = torch.ones(STAGE_ROWS, dtype=torch.bool).index_fill_(0, places, False)
        assert stage[is_free].isnan().all()


def test_statistics_of_staged_rows_come_before_those_of_own() -> None:
    lengths = (70, 130, 40)
    positions = [torch.arange(length).numpy() for length in lengths]
    ranges = sharded_ranges(positions, positions)
    task = AttentionTask(ranges, num_heads=2, num_kv_heads=2)
    lse, delta = torch.randn(2, 2, sum(lengths))
    lse[0, 3] = -torch.inf
    whole = padded_statistics(lse, delta, task, 0.5)
    # the first document is staged, its statistics strided and with rows behind it that mean nothing
    first = torch.full((70, 5), torch.nan)
    first[:, :4] = torch.cat([lse[:, :70], delta[:, :70]]).T
    staged = first[:, :4].T.chunk(2)
    parts = padded_statistics(lse[:, 70:].contiguous(), delta[:, 70:].contiguous(), task, 0.5, staged=staged)
    assert torch.equal(torch.stack(whole), torch.stack(parts))
    assert whole[0][0, 3] == -torch.inf
