"""The ranks that hold a copy of a stage, and how they exchange what they add up."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.parallel import nccl_calls
from hetsched.parallel.nccl_calls import Communicator

# torch 2.13 calls it all_gather_single, and warns of the name that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Copies(Protocol):
    """Collectives over the ranks of a group; tensors are contiguous, and in use until the current stream is past them.

    Attributes:
        num_ranks: of the group, two or more.
    """

    num_ranks: int

    def all_reduce(self, values: Tensor) -> None:
        """The sum of ``[n]`` values of float32 or float64 in place."""

    def all_to_all(self, received: Tensor, values: Tensor) -> None:
        """Part i of ``values``, of n equal ones, to rank i; ``received`` has those of all ranks by rank."""

    def all_gather(self, values: Tensor, part: Tensor) -> None:
        """Every rank's part to all of them; ``values`` has them by rank."""


class TorchCopies:
    """By torch's collectives, whatever the group's backend; see Copies.

    Args:
        group: of which this rank is one.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self.num_ranks = group, group.size()

    def all_reduce(self, values: Tensor) -> None:
        dist.all_reduce(values, group=self._group)

    def all_to_all(self, received: Tensor, values: Tensor) -> None:
        # As bytes: what is only moved needs no dtype that the backend knows.
        dist.all_to_all_single(received.view(torch.uint8), values.view(torch.uint8), group=self._group)

    def all_gather(self, values: Tensor, part: Tensor) -> None:
        _all_gather(values.view(torch.uint8), part.view(torch.uint8), group=self._group)


class NcclCopies:
    """By NCCL's own, on the current stream: torch's hold the host for longer, at the end of a step; see Copies.

    Args:
        group: of NCCL, of which this rank is one; collective, as it connects.
        device: this rank's GPU, the current one.

    Raises:
        JobError: NCCL's functions cannot be called here.
    """

    def __init__(self, group: dist.ProcessGroup, *, device: torch.device) -> None:
        self._communicator, self._device, self.num_ranks = Communicator.of(group, device), device, group.size()

    def all_reduce(self, values: Tensor) -> None:
        self._communicator.all_reduce(values.data_ptr(), values.numel(), values.dtype, self._stream())

    def all_to_all(self, received: Tensor, values: Tensor) -> None:
        part_bytes = values.nbytes // self.num_ranks
        addresses = (values.data_ptr(), received.data_ptr())
        self._communicator.all_to_all(*addresses, part_bytes, self._stream(), num_ranks=self.num_ranks)

    def all_gather(self, values: Tensor, part: Tensor) -> None:
        self._communicator.all_gather(part.data_ptr(), values.data_ptr(), part.nbytes, self._stream())

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream


def copies_of(group: dist.ProcessGroup | None, *, device: torch.device) -> Copies | None:
    """The copies of a group, by what is quickest there; None without a group. Every rank of the group calls this.

    Args:
        group: of the ranks that hold a copy; None where there is only one.
        device: where gradients are.
    """
    if group is None:
        return None
    backend: Any = group._get_backend(device)
    if backend.name() == "nccl" and nccl_calls.missing() is None:
        return NcclCopies(group, device=device)
    return TorchCopies(group)
