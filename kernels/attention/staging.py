"""Where a rank keeps rows that it pulls from others, beside its own of the same documents, and how its own get there.

A *stage* of keys is ``[parts, rows, 2, heads of a part, D]``: few heads at a time, with K and V side by side, so that a
run of rows of one part is one contiguous copy, and the first heads can be computed on before the last have come.

A stage of queries is ``[rows, columns]``: q, the output's gradient, and in float32 lse and delta of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hetsched.kernels.attention.triton import packed_heads

_ROWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Keys and values of some documents, and what says which of them have come.

    Args:
        stage: ``[parts, rows, 2, heads of a part, D]``.
        needs: int32 ``[tiles, 2]``: how many copies must have landed before a tile of 128 rows is read in the first
            part, and how many more in every further one.
        counter: one int32 that counts copies as they land.
        landed: its value when none of these copies has landed; it may wrap around.
        lost: one int32 that becomes 1 where a tile was given up after some seconds.
    """

    stage: Tensor
    needs: Tensor
    counter: Tensor
    landed: int
    lost: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StagedQueries:
    """Views of a stage of queries; rows between its documents hold anything.

    Args:
        q, dout: ``[rows, H, D]``.
        lse, delta: float32 ``[H, rows]``.
    """

    q: Tensor
    dout: Tensor
    lse: Tensor
    delta: Tensor

    @staticmethod
    def of(stage_RC: Tensor, *, num_heads: int, head_dim: int) -> StagedQueries:
        """The views of ``[rows, columns]`` of a 16-bit dtype."""
        width = num_heads * head_dim
        rows = stage_RC[:, : 2 * width].unflatten(1, (2, num_heads, head_dim))
        lse, delta = stage_RC[:, 2 * width : 2 * width + 4 * num_heads].view(torch.float32).T.chunk(2)
        return StagedQueries(rows[:, 0], rows[:, 1], lse, delta)


def query_columns(num_heads: int, head_dim: int) -> int:
    """16-bit columns of a stage of queries; a row begins at a multiple of 16 bytes, as TMA wants it."""
    return 2 * num_heads * head_dim + -(-4 * num_heads // 8) * 8


def fill(stage: Tensor, k_TKD: Tensor, v_TKD: Tensor, own: Tensor) -> None:
    """Writes this rank's keys and values of the documents that are staged.

    Args:
        stage: ``[parts, rows, 2, heads of a part, D]``, contiguous.
        k_TKD, v_TKD: ``[T, K, D]``, D a power of two.
        own: int32 ``[2, n]``, rows of k and v, and the row of the stage that each goes to.
    """
    _fill(stage, (k_TKD, v_TKD), own, (None, None), heads_of_part=stage.shape[3])


def fill_queries(
    stage_RC: Tensor, q_THD: Tensor, dout_THD: Tensor, own: Tensor, *, statistics: tuple[Tensor, Tensor]
) -> None:
    """Writes this rank's queries, their output's gradient and statistics of the documents that are staged.

    Args:
        stage_RC: ``[rows, columns]``, contiguous, see :func:`query_columns`.
        q_THD, dout_THD: ``[T, H, D]``, D a power of two.
        own: int32 ``[2, n]``, rows of q, and the row of the stage that each goes to.
        statistics: lse and delta, float32 ``[H, T]``, contiguous.
    """
    _fill(stage_RC[None], (q_THD, dout_THD), own, statistics, heads_of_part=q_THD.shape[1])


def _fill(
    stage: Tensor,
    pair: tuple[Tensor, Tensor],
    own: Tensor,
    statistics: tuple[Tensor | None, Tensor | None],
    *,
    heads_of_part: int,
) -> None:
    num_rows = own.shape[1]
    if num_rows == 0:
        return
    _, num_heads, head_dim = pair[0].shape
    first, second = (packed_heads(x) for x in pair)
    # heads first: programs that run together then read and write whole rows
    grid = (num_heads, 2, triton.cdiv(num_rows, _ROWS))
    fill_kernel[grid](
        *(first, second, stage, own, *statistics, num_rows, pair[0].shape[0], first.stride(0), second.stride(0)),
        *(stage.stride(0), stage.stride(1)),
        HEADS=heads_of_part,
        BLOCK_HEADS=triton.next_power_of_2(heads_of_part),
        D=head_dim,
        ROWS=_ROWS,
        STATISTICS=statistics[0] is not None,
    )


@triton.jit(do_not_specialize=["num_rows", "total_rows", "part_stride"])
def fill_kernel(
    first_ptr,
    second_ptr,
    stage_ptr,
    own_ptr,
    lse_ptr,
    delta_ptr,
    num_rows,
    total_rows,
    first_stride,
    second_stride,
    part_stride,
    row_stride,
    HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """A block of rows of one head of one of two tensors to their places; with STATISTICS, lse or delta of all heads."""
    i = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    head, is_second = tl.program_id(0), tl.program_id(1)
    column, is_row = tl.arange(0, D), i < num_rows
    row = tl.load(own_ptr + i, mask=is_row, other=0).to(tl.int64)
    place = tl.load(own_ptr + num_rows + i, mask=is_row, other=0).to(tl.int64)
    source = first_ptr + row[:, None] * first_stride
    if is_second:
        source = second_ptr + row[:, None] * second_stride
    x = tl.load(source + head * D + column[None, :], mask=is_row[:, None])
    target = place * row_stride + (head // HEADS).to(tl.int64) * part_stride
    slot = target + (is_second * HEADS + head % HEADS) * D
    tl.store(stage_ptr + slot[:, None] + column[None, :], x, mask=is_row[:, None])
    if STATISTICS and head == 0:
        statistic = lse_ptr
        if is_second:
            statistic = delta_ptr
        heads = tl.arange(0, BLOCK_HEADS)[None, :]
        is_value = is_row[:, None] & (heads < HEADS)
        values = tl.load(statistic + heads.to(tl.int64) * total_rows + row[:, None], mask=is_value)
        # the stage has 16-bit columns: q and dout of all heads are as many float32 columns as one of them has
        at = stage_ptr.to(tl.pointer_type(tl.float32)) + target[:, None] // 2 + HEADS * D + is_second * HEADS
        tl.store(at + heads, values, mask=is_value)
