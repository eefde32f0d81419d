"""The row kernels' machine code for Hopper: no spills, 16-byte accesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "sm90_rows.py"


def test_every_row_kernel_compiles_for_hopper_without_spills() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    run = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(kernels) == 17
    for kernel in kernels:
        assert kernel["stack_bytes"] == 0, kernel
        assert kernel["local_accesses"] == 0, kernel
        if kernel["name"].startswith(("merge", "_sum_pieces")):
            assert kernel["wide_loads"] >= 1, kernel
            assert kernel["wide_stores"] >= 1, kernel
