"""compute-sanitizer finds no access outside memory in the peer transport between two processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hetsched.kernels.put import library

SANITIZER = shutil.which("compute-sanitizer")
REASON = library.missing() or (None if torch.cuda.device_count() > 1 else "needs two GPUs")
pytestmark = pytest.mark.skipif(REASON is not None or SANITIZER is None, reason=REASON or "no compute-sanitizer")

RUN = """
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch
from tests.gpu.peer_ranks import exchange_in_turns

launch(exchange_in_turns, 5, num_ranks=2, backend=BACKEND)
"""


def test_memcheck_finds_nothing_in_messages_between_two_processes() -> None:
    # torch asks for fabric memory to see whether there is any, and is refused: that is no error of anybody's.
    options = ["--tool", "memcheck", "--target-processes", "all", "--report-api-errors", "no", "--error-exitcode", "7"]
    ended = subprocess.run(
        [str(SANITIZER), *options, sys.executable, "-c", RUN],
        cwd=Path(__file__).parents[2],
        # All kernels of torch need not be loaded, as no stream waits for a peer.
        env=os.environ | {"CUDA_MODULE_LOADING": "LAZY", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "ERROR SUMMARY: 0 errors" in ended.stdout
