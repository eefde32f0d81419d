"""Messages between GPUs of the same host: rows stored straight into the memory where their receiver reads them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from hetsched.kernels.put import library

MOST_COPIES = 128
"""Pieces of a message up to which the driver's batch of copies is used: it puts rows as fast as a single copy and no SM
is taken, but costs the host about 1 us a piece; the kernel's launch costs 35 to 115 us in all (docs/benchmarks.md)."""
_NUM_BLOCKS = 64


class Destination(NamedTuple):
    """Where a message goes, and what is counted there.

    Args:
        room: bytes in the receiver's memory, which rows fill from their start.
        arrived: one int32 beside it, which counts messages.
        number: what it becomes with this one; it only grows, and may wrap around.
        returned: one int32 in the sender's memory that counts rooms that were given back; None if it need not be asked.
        awaited: the count from which on this room is free.
    """

    room: Tensor
    arrived: Tensor
    number: int
    returned: Tensor | None = None
    awaited: int = 0


def put_message(
    rows: Tensor,
    pieces: Sequence[tuple[int, int, int]],
    to: Destination,
    *,
    ticket: Tensor,
    stream: torch.cuda.Stream | None = None,
) -> None:
    """Waits until the room is free, stores runs of rows into it and counts the message, all on the device.

    Few pieces are moved by the copy engine, many by the kernel. Nothing here waits.

    Args:
        rows: contiguous ``[n, hidden]``.
        pieces: first row, first row of the room and number of rows (> 0) of each; none for a message that only counts.
        to: where they go.
        ticket: one int32 zero on the sender's GPU, for this stream's messages alone; it is zero again afterwards.
        stream: what it is enqueued on, after all that the current stream was given so far; the current one by default,
            which must not be the default stream unless the message only counts: the driver takes no batches there.

    Raises:
        RuntimeError: a shape, dtype or device is wrong, a piece leaves the rows or the room, or there is no compiled
            library.
    """
    num_blocks = _NUM_BLOCKS if len(pieces) > MOST_COPIES else 0
    on_stream = 0 if stream is None else stream.cuda_stream
    library.ops().put_message(rows, list(chain(*pieces)), *to, ticket, num_blocks, on_stream)
