"""Tensors that go to a device together: one block of memory, written once on the host, and one copy.

Page-locked memory is dear to get and is kept by size, so the many tensors of a step that differ from step to step would
each ask for more of it, at times while GPUs work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

Part = tuple[Tensor, Tensor | None]
"""A tensor on the host, and which of its rows (all where it is None)."""
_ALIGNMENT = 256


@dataclass(slots=True, eq=False)
class Packed:
    """A tensor of a parcel."""

    parts: Sequence[Part]
    shape: tuple[int, ...]
    dtype: torch.dtype
    first_byte: int
    sent: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """On the device, once the parcel was sent."""
        assert self.sent is not None, "the parcel was not sent"
        return self.sent

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def within(self, block: Tensor) -> Tensor:
        """Its place in a block."""
        of_bytes = block[self.first_byte : self.first_byte + self.num_bytes]
        # Not a view: all of a block's would share one count of changes, and autograd take one's for another's.
        return of_bytes.view(self.dtype).view(self.shape).data

    def write(self, block: Tensor) -> None:
        """Copy the parts to their place, one after the other."""
        to, first = self.within(block), 0
        for tensor, rows in self.parts:
            source = tensor if rows is None else tensor[rows]
            to[first : first + len(source)] = source
            first += len(source)


class Parcel:
    """What is to be sent; floating-point tensors travel as one type.

    Args:
        device: where it goes.
        dtype: of floating-point tensors, there.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._packed: list[Packed] = []
        self._num_bytes = 0

    def add(self, parts: Sequence[Part]) -> Packed:
        """Rows of tensors that are alike, one or more, one after the other; they must not change until it is sent."""
        first, _ = parts[0]
        num_rows = sum(len(tensor if rows is None else rows) for tensor, rows in parts)
        dtype = self._dtype if first.is_floating_point() else first.dtype
        packed = Packed(parts, (num_rows, *first.shape[1:]), dtype, self._num_bytes)
        self._packed.append(packed)
        self._num_bytes += -(-packed.num_bytes // _ALIGNMENT) * _ALIGNMENT
        return packed

    def add_integers(self, values: ArrayLike, dtype: torch.dtype) -> Packed:
        """A list of numbers that the host knows."""
        return self.add([(torch.as_tensor(values, dtype=dtype), None)])

    def send(self) -> None:
        """Write all and start the copy; the host does not wait for what the device does."""
        block = torch.empty(self._num_bytes, dtype=torch.uint8, pin_memory=self._device.type != "cpu")
        for packed in self._packed:
            packed.write(block)
        on_device = block.to(self._device, non_blocking=True)
        for packed in self._packed:
            packed.sent, packed.parts = packed.within(on_device), ()
