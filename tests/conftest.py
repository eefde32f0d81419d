"""Settings of the whole test run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Machines that run the tests are shared: how long an example takes says nothing about the code.
settings.register_profile("hetsched", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hetsched")

# Triton reads the variable when a kernel is defined, so it is set before any test module is imported. Without a GPU
# its kernels run in the interpreter; tests/gpu runs them for real.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
