"""The truth for pack-and-put in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def put_runs(source: Tensor, runs: Tensor, destinations: Sequence[Tensor]) -> None:
    """Copies every run in turn.

    Args:
        source: ``[num_rows, hidden]``.
        runs: int64 ``[num_runs, 4]``: source row, number of the destination, its row, number of rows.
        destinations: ``[num_rows, hidden]`` each.
    """
    for source_row, number, row, num_rows in runs.tolist():
        destinations[number][row : row + num_rows] = source[source_row : source_row + num_rows]
