"""Rows pulled out of the memory of other GPUs of the host by the copy engine."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hetsched.kernels.put import library


def pull_runs(sources: Sequence[Tensor], destination: Tensor, runs: Tensor, *, counter: Tensor, first: int) -> None:
    """Copies runs of rows, on the current stream and without an SM, and counts them as they land.

    Args:
        sources: contiguous ``[rows, columns]``, the GPU's own memory or peers'.
        destination: contiguous, of the same columns and dtype.
        runs: int64 ``[num_runs, 4]`` on the host: number of the source, its row, row of the destination, rows (> 0).
        counter: one int32; it becomes ``first + i`` once runs 0 to i have landed and can be read, and may wrap around.
        first: its value after the first run.

    Raises:
        RuntimeError: a shape, dtype or device is wrong, a run leaves its source or the destination, or there is no
            compiled library.
    """
    library.ops().pull_runs(list(sources), destination, runs, counter, first)
