"""The peer transport between all GPUs: every row of many messages in few slots, and what breaks without its rules."""

from __future__ import annotations

import pytest
import torch

from hetsched.kernels.put import library
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch
from tests.gpu.peer_ranks import MUTANTS, exchange

NUM_RANKS = min(4, torch.cuda.device_count())
REASON = library.missing() or (None if NUM_RANKS > 1 else "needs two GPUs")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_every_message_arrives_exactly_unless_the_protocol_is_broken(mutant: str | None) -> None:
    launch(exchange, mutant, num_ranks=NUM_RANKS, backend=BACKEND)
