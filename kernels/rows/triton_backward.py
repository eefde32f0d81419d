"""Both gradients of a merge on a GPU, side by side.

The table's sum ends in chains of partial sums that wait for memory and leave most of the GPU idle; the gather of the
rows' gradients fills it. The sum has a stream of higher priority, so that its short kernels do not queue behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from hetsched.kernels.rows.triton import take
from hetsched.kernels.rows.triton_sum import sum_rows_into


@functools.cache
def _sum_stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority=-1)
    return stream


def merge_gradients(
    table_grad: Tensor,
    grad: Tensor,
    ids: Tensor,
    *,
    slot: Tensor,
    order: Tensor,
    inverses: Sequence[Tensor],
    vocab_start: int,
) -> list[Tensor]:
    """Fills ``table_grad`` as ``sum_rows_into`` does, and gives ``take(grad, inverse)`` of each encoder.

    Both are done for whatever the current stream does next; it may be capturing a CUDA graph.
    """
    current, side = torch.cuda.current_stream(grad.device), _sum_stream(grad.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        sum_rows_into(table_grad, grad, ids, slot, order, vocab_start=vocab_start)
    rows_grads = [take(grad, inverse) for inverse in inverses]
    # What the caller frees from here on is reused after the sum, too.
    current.wait_stream(side)
    return rows_grads
