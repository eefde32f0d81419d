"""The example for authors of training loops starts by itself, learns, and fits on two pages."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.pool import Pool

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "custom_trainer.py"


def run_example() -> dict[str, list[float]]:
    spec = importlib.util.spec_from_file_location("custom_trainer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses: dict[str, list[float]] = module.main()
    return losses


def test_the_custom_trainer_learns_the_same_under_both_placements(ranks: Pool) -> None:
    of_ranks = ranks.run(run_example, num_ranks=4)
    assert all(losses == of_ranks[0] for losses in of_ranks)
    colocated, apart = of_ranks[0].values()
    assert colocated == pytest.approx(apart, rel=1e-3)
    assert colocated[0] > 1.2
    assert colocated[-1] < 0.5


def test_the_custom_trainer_starts_its_ranks_itself() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(EXAMPLE)]
    started = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (started.returncode, started.stderr) == (0, "")
    words = [line.split()[0] for line in started.stdout.splitlines()]
    assert words == ["colocated:", "non-colocated:", "largest"]


def test_the_custom_trainer_fits_on_two_pages() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 130
