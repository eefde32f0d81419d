"""A bad placeholder that a kernel meets on a GPU is raised at the end of the engine's step, in the host's words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.dist.placeholders import merge_at_once, merge_on_gpu, words_of_a_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("is_training", [True, False], ids=["step", "evaluate"])
def test_a_bad_placeholder_is_raised_at_the_end_of_the_step(tmp_path: Path, is_training: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        at_once, _ = words_of_a_step(merge_at_once, 0, is_training, 1)
        at_the_end, afterwards = words_of_a_step(merge_on_gpu, 0, is_training, 1)
        fine = words_of_a_step(merge_on_gpu, None, is_training, 1)
    finally:
        dist.destroy_process_group()
    assert "slot of shape [11] has 9 at position 2" in at_once
    assert at_the_end == f"rank 0: {at_once}"
    assert [afterwards, *fine] == ["", "", ""]
