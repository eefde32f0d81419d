"""Jobs of more ranks than there are GPUs: several ranks on each, for tests of what ranks tell each other.

A plan's own check refuses them, as they are slow. So does NCCL, for ranks of one host; here each passes for a host of
its own, and NCCL moves through sockets what it would move between GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch

from hetsched.plan import Plan
from hetsched.runtime import agreement, engine
from hetsched.runtime.transport.streamed import prepare_environment


def device_of(rank: int, *, num_ranks: int) -> torch.device:
    """The GPU of a rank, made the current one; ranks share GPUs where they are fewer. Before anything uses NCCL."""
    num_gpus = torch.cuda.device_count()
    if num_ranks > num_gpus:
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
        os.environ.update(NCCL_HOSTID=f"rank {rank}", NCCL_NET="Socket", NCCL_SOCKET_IFNAME="lo")
    device = torch.device("cuda", rank % num_gpus)
    torch.cuda.set_device(device)
    return device


@contextmanager
def shared_gpus() -> Iterator[None]:
    """Engines in this process take the GPU that they are given; before anything uses it."""
    prepare_environment()
    with (
        mock.patch.object(agreement, "check_ranks", _hosts),
        mock.patch.object(engine, "use_device", lambda plan, rank: device_of(rank, num_ranks=plan.world_size)),
    ):
        yield


def _hosts(plan: Plan) -> Sequence[str] | None:
    """As ``check_ranks`` finds them, with nothing that it refuses."""
    return ["here"] * plan.world_size if plan.transport == "peer" else None
