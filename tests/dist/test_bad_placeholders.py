"""Bad placeholders that a stage hands to a row operation: a ValueError, on every rank where a kernel recorded it."""

from __future__ import annotations

import os

import pytest

from tests.dist.placeholders import merge_at_once, merge_recorded, words_of_a_step
from tests.dist.pool import Pool

WORDS = "slot of shape [11] has 9 at position 2, but rows have 5 rows in all"

is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("is_training", [True, False], ids=["step", "evaluate"])
def test_the_cpu_path_raises_the_host_s_words(ranks: Pool, is_training: bool) -> None:
    ((first, second),) = ranks.run(words_of_a_step, merge_at_once, 0, is_training, 1, num_ranks=1)
    # It is raised in the middle of the step, so the engine is not used again.
    assert first == WORDS and second.startswith("an earlier step of this engine ended in its middle")


@pytest.mark.skipif(not is_interpreted, reason="kernels run on CPU tensors in the interpreter alone")
@pytest.mark.parametrize("is_training", [True, False], ids=["step", "evaluate"])
def test_what_a_kernel_recorded_is_raised_on_every_rank_and_then_forgotten(ranks: Pool, is_training: bool) -> None:
    found = ranks.run(words_of_a_step, merge_recorded, 1, is_training, 2, num_ranks=2)
    assert found == [[f"rank 1: {WORDS}", ""]] * 2


@pytest.mark.skipif(not is_interpreted, reason="kernels run on CPU tensors in the interpreter alone")
def test_a_step_without_faults_raises_nothing(ranks: Pool) -> None:
    assert ranks.run(words_of_a_step, merge_recorded, None, True, 2, num_ranks=2) == [["", ""]] * 2
