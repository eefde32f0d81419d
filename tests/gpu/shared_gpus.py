"""Jobs of more ranks than there are GPUs: several ranks on each, for tests of what ranks tell each other.

A plan's own check refuses them, as they are slow, and NCCL does: sums of gradients go through the hosts here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from hetsched.runtime import agreement, engine
from hetsched.runtime.transport.streamed import prepare_environment

BACKEND = "cpu:gloo,cuda:gloo"


def device_of(rank: int) -> torch.device:
    """The GPU of a rank, made the current one; ranks share GPUs where they are fewer."""
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextmanager
def shared_gpus() -> Iterator[None]:
    """Engines in this process take the GPU that they are given; before anything uses it."""
    prepare_environment()
    with (
        mock.patch.object(agreement, "check_ranks", lambda plan: ["here"] * plan.world_size),
        mock.patch.object(engine, "use_device", lambda plan, rank: device_of(rank)),
    ):
        yield
