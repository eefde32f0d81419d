"""The Hopper forward over keys that copies bring while it runs: one launch over the keys of all ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hetsched.kernels.attention import hopper_forward
from hetsched.kernels.attention.hopper import FORWARD, LOG2E, constants, rows_of
from hetsched.kernels.attention.task import AttentionTask
from hetsched.kernels.attention.triton import outputs, packed_heads, softmax_scale


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """Keys and values, and what says which of them have come.

    Args:
        stage: ``[parts, rows, 2, heads of a part, D]``, see :mod:`hetsched.kernels.attention.staging`.
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


def forward(q_THD: Tensor, staged: Staged, task: AttentionTask, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Output and lse, bitwise those of one launch over the same keys that are all there.

    The copies are enqueued before this is called: programs hold all multiprocessors while they wait for them.

    Args:
        q_THD: queries.
        staged: the keys and values; documents start at multiples of 128 rows.
        task: ranges over the rows of the stage.
        scale: factor of the scores, by default ``1 / sqrt(D)``.

    Returns:
        ``[T, H, D]`` of q's dtype; float32 ``[H, T]``, natural log.
    """
    table = task.table("queries", FORWARD)
    out, lse = outputs(q_THD, table.is_complete)
    if table.num_items:
        q, heads = packed_heads(q_THD), staged.stage.shape[3]
        k, v = staged.stage.flatten(0, 1).unbind(1)
        hopper_forward.forward_kernel[(table.workers.shape[0],)](
            *(rows_of(q, 128), rows_of(k, 128), rows_of(v, 128), rows_of(out, 64), out, lse, *task.bounds),
            *(table.tiles, table.workers, staged.needs, staged.counter, staged.lost),
            *(q.shape[0], table.workers.shape[1], staged.landed, staged.stage.shape[1]),
            softmax_scale(q, scale) * LOG2E,
            HEADS=task.num_heads,
            CARRY=False,
            PULLED=heads,
            **constants(q, task),
        )
    return out, lse
