"""Messages between GPUs of the same host: rows stored straight into the memory where their receiver reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hetsched.kernels.put import library
from hetsched.kernels.put.counters import Counter, Handle

MOST_COPIES = 128
"""Pieces of a message up to which the driver's batch of copies is used: it puts rows as fast as a single copy and no SM
is taken, but costs the host about 1 us a piece; the kernel's launch costs 35 to 115 us in all (docs/benchmarks.md)."""
_NUM_BLOCKS = 64


class Destination(NamedTuple):
    """Where a message goes, and what is counted there.

    Args:
        room: contiguous bytes in the receiver's memory, which rows fill from their start.
        arrived: beside it, counts messages.
        number: what it becomes with this one.
        returned: in the sender's memory, counts rooms that were given back; None if it need not be asked.
        awaited: the count from which on this room is free.
    """

    room: Tensor
    arrived: Counter
    number: int
    returned: Counter | None = None
    awaited: int = 0


def put_message(
    rows: Tensor,
    pieces: tuple[tuple[int, int, int], ...],
    to: Destination,
    *,
    ticket: Counter,
    stream: torch.cuda.Stream | None = None,
    done: Handle | None = None,
) -> None:
    """Waits until the room is free, stores runs of rows into it and counts the message, all on the device.

    Few pieces are moved by the copy engine, many by the kernel. Nothing here waits.

    Args:
        rows: contiguous ``[n, hidden]`` in the memory of the ticket's GPU.
        pieces: first row, first row of the room and number of rows (> 0) of each; none for a message that only counts.
        to: where they go.
        ticket: zero on the sender's GPU, for this stream's messages alone; it is zero again afterwards.
        stream: what it is enqueued on, after all that the current stream was given so far; the current one by default,
            which must not be the default stream unless the message only counts: the driver takes no batches there.
        done: is recorded behind the message.

    Raises:
        RuntimeError: the rows are not contiguous, a piece leaves them or the room, or CUDA refuses.
    """
    if not rows.is_contiguous():
        raise RuntimeError(f"rows must be contiguous, not {list(rows.shape)} with strides {rows.stride()}")
    num_rows, hidden = rows.shape
    library.functions().put_message(
        rows.data_ptr(),
        num_rows,
        hidden * rows.itemsize,
        pieces,
        to.room.data_ptr(),
        to.room.nbytes,
        to.arrived.address,
        to.number,
        0 if to.returned is None else to.returned.address,
        to.awaited,
        ticket.address,
        _NUM_BLOCKS if len(pieces) > MOST_COPIES else 0,
        0 if stream is None else stream.cuda_stream,
        0 if done is None else done.event_id,
        ticket.device,
    )
