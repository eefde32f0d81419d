"""The example for authors of training loops learns, in at most 80 lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tests.dist.pool import Pool

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_trainer.py"


def run_example() -> list[float]:
    spec = importlib.util.spec_from_file_location("custom_trainer", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses: list[float] = module.main()
    return losses


def test_the_custom_trainer_learns(ranks: Pool) -> None:
    losses = ranks.run(run_example, num_ranks=3)
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][0] > 1.2
    assert losses[0][-1] < 0.7


def test_the_custom_trainer_fits_on_a_page() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 80
