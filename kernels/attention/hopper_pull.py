"""The Hopper kernels over rows that other ranks made: one launch for the keys, or the queries, of all ranks.

Documents that are whole here stay where they are. The rows of the others lie in a stage; in a task the rows of the
stage come first, and behind them those of this rank's own tensors.
"""

from __future__ import annotations

from torch import Tensor

from hetsched.kernels.attention import hopper_forward
from hetsched.kernels.attention.hopper import FORWARD, LOG2E, constants, dkv_of, dq_of, rows_of, stage_arguments
from hetsched.kernels.attention.staging import Staged, StagedQueries
from hetsched.kernels.attention.task import AttentionTask
from hetsched.kernels.attention.triton import outputs, packed_heads, padded_statistics, softmax_scale

KeysValues = tuple[Tensor, Tensor]


def forward(
    q_THD: Tensor, own: KeysValues, staged: Staged, task: AttentionTask, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output and lse, bitwise those of one launch over the same keys that are all there.

    The copies are enqueued before this is called: programs hold all multiprocessors while they wait for them.

    Args:
        q_THD: queries.
        own: keys and values ``[T, K, D]`` of this rank.
        staged: those of documents that are not whole here; documents start at multiples of 128 rows.
        task: ranges over the rows of the stage, then those of ``own``.
        scale: factor of the scores, by default ``1 / sqrt(D)``.

    Returns:
        ``[T, H, D]`` of q's dtype; float32 ``[H, T]``, natural log.
    """
    table = task.table("queries", FORWARD)
    out, lse = outputs(q_THD, table.is_complete)
    if table.num_items:
        q, k, v = (packed_heads(x) for x in (q_THD, *own))
        stage, numbers, heads = stage_arguments(staged)
        hopper_forward.forward_kernel[(table.workers.shape[0],)](
            *(rows_of(q, 128), rows_of(k, 128), rows_of(v, 128), rows_of(out, 64), out, lse, *task.bounds),
            *(table.tiles, table.workers, *stage, q.shape[0], table.workers.shape[1], *numbers),
            softmax_scale(q, scale) * LOG2E,
            HEADS=task.num_heads,
            CARRY=False,
            PULLED=heads,
            **constants(q, task),
        )
    return out, lse


def query_gradient(
    dout_THD: Tensor,
    q_THD: Tensor,
    own: KeysValues,
    staged: Staged,
    statistics: tuple[Tensor, Tensor],
    task: AttentionTask,
    *,
    scale: float | None = None,
) -> Tensor:
    """dq, while keys come as in :func:`forward`; bitwise that of one launch over the same keys.

    Args:
        dout_THD: gradient of the output.
        q_THD, own, staged, task, scale: as in :func:`forward`.
        statistics: lse and delta of the queries, float32 ``[H, T]``.
    """
    factor = softmax_scale(q_THD, scale)
    padded = padded_statistics(*statistics, task, factor)
    inputs = (*(packed_heads(x) for x in (q_THD, *own)), dout_THD.contiguous(), *padded)
    return dq_of(inputs, task, factor, staged=staged)


def key_gradients(
    dout_THD: Tensor,
    q_THD: Tensor,
    own: KeysValues,
    staged: StagedQueries,
    statistics: tuple[Tensor, Tensor],
    task: AttentionTask,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """dk and dv of ``own`` from the queries of all ranks, all of which are here.

    Args:
        dout_THD, q_THD, statistics: of this rank's queries.
        own: keys and values ``[T, K, D]`` of this rank.
        staged: queries of documents that are not whole here.
        task: ranges of the rows of the stage, then those of q, over the rows of ``own``.
        scale: as in :func:`forward`.
    """
    factor = softmax_scale(q_THD, scale)
    padded = padded_statistics(*statistics, task, factor, staged=(staged.lse, staged.delta))
    inputs = (*(packed_heads(x) for x in (q_THD, *own)), dout_THD.contiguous(), *padded)
    return dkv_of(inputs, task, factor, staged=(staged.q, staged.dout))
