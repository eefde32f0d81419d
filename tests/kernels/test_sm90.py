"""The machine code of all Triton kernels for Hopper, compiled without a GPU: no spills, wide accesses, tensor cores."""

from __future__ import annotations

import pytest

from tests.kernels.sm90 import FAMILIES, usage_of

NUM_KERNELS = {"rows": 19, "attention": 15, "attention-hopper": 10}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_compiles_for_hopper_without_spills(family: str) -> None:
    kernels = usage_of(family)
    assert len(kernels) == NUM_KERNELS[family]
    for kernel in kernels:
        assert kernel["stack_bytes"] == 0, kernel
        assert kernel["local_accesses"] == 0, kernel
        if kernel["name"].startswith(("merge", "_sum_pieces")):
            assert kernel["wide_loads"] >= 1, kernel
            assert kernel["wide_stores"] >= 1, kernel
        if " d" in kernel["name"]:
            assert kernel["wgmma"] >= 1, kernel
