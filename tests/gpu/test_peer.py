"""The peer transport between all GPUs: every row of many messages in few slots, and what breaks without its rules."""

from __future__ import annotations

import pytest
import torch

from hetsched.errors import JobError
from hetsched.kernels.put import library
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch
from tests.gpu.exchange_ranks import exchange_rows
from tests.gpu.peer_ranks import MUTANTS, exchange

NUM_GPUS = torch.cuda.device_count()
REASON = library.missing() or (None if NUM_GPUS > 1 else "needs two GPUs")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.mark.parametrize(("mutant", "num_exchanges"), [(None, 10_000), *((mutant, 2_500) for mutant in MUTANTS)])
def test_every_message_arrives_exactly_unless_the_protocol_is_broken(mutant: str | None, num_exchanges: int) -> None:
    launch(exchange, mutant, num_exchanges, num_ranks=min(4, NUM_GPUS), backend=BACKEND)


@pytest.mark.skipif(NUM_GPUS >= 4, reason="four ranks have a GPU each in the test above")
def test_every_message_of_four_ranks_that_share_gpus_arrives_exactly() -> None:
    launch(exchange, None, 10_000, num_ranks=4, backend=BACKEND)


@pytest.mark.parametrize("transport", ["nccl", "peer"])
def test_an_exchange_never_makes_the_host_wait_for_a_device(transport: str) -> None:
    launch(exchange_rows, transport, False, num_ranks=2, backend=BACKEND)


def test_an_exchange_that_makes_the_host_wait_is_noticed() -> None:
    with pytest.raises(JobError, match="synchronizing CUDA operation"):
        launch(exchange_rows, "peer", True, num_ranks=2, backend=BACKEND)
