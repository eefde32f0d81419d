"""All Triton kernels compiled for Hopper without a GPU: no spills, wide accesses, tensor cores, no idle barriers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.kernels.sm90 import FAMILIES, usage_of

NUM_KERNELS = {"rows": 19, "attention": 17, "attention-hopper": 16}


@pytest.fixture(scope="module")
def usages() -> dict[str, list[dict[str, Any]]]:
    """What the kernels of each family use; two families are compiled at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FAMILIES, pool.map(usage_of, FAMILIES), strict=True))


@pytest.mark.parametrize("family", NUM_KERNELS)
def test_every_kernel_compiles_for_hopper_without_spills(family: str, usages: dict[str, list[dict[str, Any]]]) -> None:
    kernels = usages[family]
    assert len(kernels) == NUM_KERNELS[family]
    for kernel in kernels:
        assert kernel["stack_bytes"] == 0, kernel
        assert kernel["local_accesses"] == 0, kernel
        if kernel["name"].startswith(("merge", "_sum_pieces")):
            assert kernel["wide_loads"] >= 1, kernel
            assert kernel["wide_stores"] >= 1, kernel
        if " d" in kernel["name"]:
            assert kernel["wgmma"] >= 1, kernel
        assert kernel["idle_barriers"] == 0, kernel


def test_a_barrier_that_no_warp_uses_is_seen(usages: dict[str, list[dict[str, Any]]]) -> None:
    (kernel,) = usages["wrong"]
    assert kernel["idle_barriers"] == 1, kernel
