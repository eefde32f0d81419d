"""Counters in the memory of GPUs, by which streams wait for each other, also those of other processes.

They only grow, and may wrap around. Nothing here waits on the host, or goes through torch's dispatcher: a step calls it
for every message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hetsched.kernels.put import library


class Handle(Protocol):
    """An event of torch's that was recorded before."""

    @property
    def event_id(self) -> Any: ...


class Counter:
    """One int32 in a GPU's memory, the own GPU's or a peer's that is mapped there.

    Args:
        tensor: of one element; it is kept.

    Raises:
        ValueError: it is something else.
    """

    __slots__ = ("address", "device", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        if not tensor.is_cuda or tensor.numel() != 1 or tensor.dtype != torch.int32:
            raise ValueError(f"a counter is one int32 in a GPU's memory, not {list(tensor.shape)} {tensor.dtype}")
        self.tensor, self.address, self.device = tensor, tensor.data_ptr(), tensor.get_device()


def stream_write_value(counter: Counter, value: int) -> None:
    """Sets a counter after all earlier work of the current stream, without an SM."""
    library.functions().stream_write_value(counter.address, value, counter.device)


def wait_for_counts(counters: Sequence[Counter], values: Sequence[int], *, seen: Handle | None = None) -> None:
    """Holds the current stream until each counter has reached its value; the host does not wait.

    A warp looks at them, and sees a change within a microsecond; a stream's own wait takes up to 8 us.

    Args:
        counters: one or more, in the memory of the current GPU.
        values: of each.
        seen: is recorded when the stream goes on.

    Raises:
        RuntimeError: there are not as many values as counters, or CUDA refuses.
    """
    event = 0 if seen is None else seen.event_id
    addresses = tuple([counter.address for counter in counters])
    library.functions().wait_for_counts(addresses, tuple(values), event, counters[0].device)
