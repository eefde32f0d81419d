"""Every attention kernel compiles for Hopper without a GPU, keeps its registers, and uses the tensor cores as meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", ["portable", "hopper"])
def test_kernels_compile_for_sm_90_without_spills(family: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tests/kernels/sm90.py"), family]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-3000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kernels) >= 19
    for kernel in kernels:
        assert kernel["local_accesses"] == 0, kernel
        assert kernel["stack_bytes"] == 0, kernel
    assert all(kernel["wgmma"] > 0 for kernel in kernels if " d" in kernel["name"])
