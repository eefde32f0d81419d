"""Faces of ``hetsched/_cuda.so``: rows put into the memory of GPUs of the same host.

All work is enqueued on the current stream; nothing here waits. Destinations and flags are tensors on symmetric memory,
as ``get_buffer`` of a rendezvous gives them, or the GPU's own memory.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hetsched

_LIBRARY = Path(hetsched.__file__).parent / "_cuda.so"


@functools.cache
def missing() -> str | None:
    """Why the compiled library cannot be used here; None if it can, and then it is loaded."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if not _LIBRARY.exists():
        return f"{_LIBRARY.name} was not built: it needs nvcc and torch when setup.py runs"
    try:
        functions()
    except ImportError as error:
        return f"{_LIBRARY.name} cannot be loaded: {error}; build it anew with this torch"
    return None


@functools.cache
def functions() -> Any:
    """The compiled functions. Raises ImportError: they cannot be loaded here."""
    return importlib.import_module("hetsched._cuda")


@functools.cache
def ops() -> Any:
    """The compiled ops of torch's. Raises RuntimeError: they cannot be used here."""
    reason = missing()
    if reason is not None:
        raise RuntimeError(f"rows cannot be put into peers' memory here: {reason}")
    return torch.ops.hetsched


@dataclass(frozen=True)
class Signal:
    """What a kernel tells the receivers once every row is stored.

    Args:
        flags: counters, one int32 each, in the receivers' memory.
        value: what each becomes; counters only grow, and may wrap around.
        ticket: one int32 zero on the sender's GPU, for this stream's launches alone; it is zero again afterwards.
    """

    flags: Sequence[Tensor]
    value: int
    ticket: Tensor


def pack_and_put(
    source: Tensor,
    runs: Tensor,
    destinations: Sequence[Tensor],
    *,
    signal: Signal | None = None,
    num_blocks: int = 64,
) -> None:
    """Gathers runs of rows and stores them straight into their destinations, then sets the flags, in one kernel.

    Args:
        source: contiguous ``[num_rows, hidden]``, any dtype.
        runs: int64 ``[num_runs, 4]``: source row, number of the destination, its row, number of rows. On the host it
            travels with the launch and may change at once; on the GPU (at most 4,096 runs) it must stay until then.
        destinations: at most 16, contiguous ``[num_rows, hidden]``, in the source's dtype.
        signal: what to set afterwards.
        num_blocks: the most blocks of 512 threads that the kernel occupies; 64 reach 90% of a copy's bandwidth and more
            for any message from 16 to 256 MiB, 16 not always 80%.

    Raises:
        RuntimeError: a shape, dtype or device is wrong, or a host run leaves its source or destination. A run in GPU
            memory that does so ends the process's CUDA context.
    """
    flags, value, ticket = ((), 0, None) if signal is None else (signal.flags, signal.value, signal.ticket)
    ops().pack_and_put(source, runs, list(destinations), list(flags), value, ticket, num_blocks)


def copy_runs(source: Tensor, runs: Tensor, destinations: Sequence[Tensor], *, is_batched: bool = False) -> None:
    """The same rows by the copy engine, which takes no SM: one copy per run.

    Args:
        source, runs, destinations: as for ``pack_and_put``; runs on the host.
        is_batched: give the driver all copies in one call; not on the default stream.

    Raises:
        RuntimeError: as for ``pack_and_put``.
    """
    ops().copy_runs(source, runs, list(destinations), is_batched)
