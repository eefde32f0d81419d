"""Messages between GPUs of the same host that travel in parts, so that one is taken while the next comes.

A message lies in a slot of the receiver, its rows one after the other, and at either end in runs of rows. A counter
beside the slot says how many parts have arrived. All work is enqueued on the current stream; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from hetsched.kernels.put import library

MOST_COPIES = 128
"""Runs of a message up to which the driver's batch of copies is used: it puts rows as fast as a single copy and takes
no SM, but costs the host about 1 us a run, where the kernel's launch costs 35 to 115 us in all (docs/benchmarks.md)."""
_NUM_BLOCKS = 64


@dataclass(frozen=True)
class Slot:
    """A message between its ends.

    Args:
        rows: contiguous ``[num_rows, hidden]`` in the receiver's memory.
        ends: rows up to which each part goes, ascending; the last is ``num_rows``.
        arrived: one int32 beside them, which counts parts.
        first: what it becomes with the message's first part; it only grows, and may wrap around.
    """

    rows: Tensor
    ends: Sequence[int]
    arrived: Tensor
    first: int


def put_parts(rows: Tensor, runs: Sequence[tuple[int, int]], slot: Slot, *, ticket: Tensor) -> None:
    """Puts runs of rows into a slot, one part after the other, and counts each once all its rows are there.

    Few long runs are moved by the copy engine; many, and all on the default stream, where the driver takes no batches,
    by the kernel.

    Args:
        rows: contiguous ``[n, hidden]``, in the slot's dtype.
        runs: first row and number of rows (> 0) of each, in the message's order.
        slot: where they go.
        ticket: one int32 zero on the sender's GPU, for this stream's launches alone; it is zero again afterwards.

    Raises:
        RuntimeError: a shape, dtype or device is wrong, or the runs are not the slot's rows.
    """
    num_blocks = _blocks(runs, rows.device)
    library.ops().put_parts(
        rows, list(chain(*runs)), slot.rows, slot.ends, slot.arrived, slot.first, ticket, num_blocks
    )


def take_parts(slot: Slot, rows: Tensor, runs: Sequence[tuple[int, int]]) -> None:
    """Waits, without an SM and without the host, for each part of a message in turn and copies it to its runs of rows.

    Args:
        slot: where the message arrives.
        rows: contiguous ``[n, hidden]``, in the slot's dtype.
        runs: first row and number of rows (> 0) of each, in the message's order.

    Raises:
        RuntimeError: as for ``put_parts``.
    """
    num_blocks = _blocks(runs, rows.device)
    library.ops().take_parts(slot.rows, list(chain(*runs)), rows, slot.ends, slot.arrived, slot.first, num_blocks)


def _blocks(runs: Sequence[tuple[int, int]], device: torch.device) -> int:
    is_on_default = torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    return _NUM_BLOCKS if is_on_default or len(runs) > MOST_COPIES else 0
