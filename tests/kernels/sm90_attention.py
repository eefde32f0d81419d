"""Every variant of the attention kernels, portable and for Hopper, for :mod:`tests.kernels.sm90`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from hetsched.kernels.attention import hopper_backward, hopper_dq, hopper_forward, triton_backward, triton_forward
from hetsched.kernels.attention.rows import delta_kernel, pad_statistics_kernel, scale_kernel
from hetsched.kernels.attention.staging import fill_kernel
from hetsched.kernels.attention.triton import shapes_for
from tests.kernels.sm90 import Kernel, arguments

CAUSAL, RANGES = 1, 2
SCALARS = dict.fromkeys(("num_rows", "padded_rows", "total_keys", "num_keys", "width", "num_values"), "i32")
SCALARS |= dict.fromkeys(("landed", "part_rows", "stage_rows", "total_rows"), "i32")
SCALARS |= dict.fromkeys(("q_stride", "k_stride", "v_stride", "head_stride", "row_stride", "part_stride"), "i32")
SCALARS |= dict.fromkeys(("first_stride", "second_stride"), "i32")
SCALARS |= dict.fromkeys(("scale_log2", "scale", "inverse_scale"), "fp32")
ALIGNED = ("padded_rows",)
STAGE = ("staged_k_desc", "staged_v_desc", "staged_q_desc", "staged_dout_desc", "needs_ptr", "counter_ptr", "lost_ptr")


def portable_kernels() -> Iterator[Kernel]:
    """The portable kernels: a step over ranges with GQA at every padded head dim, at 128 also a causal mask."""
    tensors = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "dout_ptr", "dk_ptr", "dv_ptr"), "*bf16")
    tensors |= dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32")
    for dim in (64, 128, 256):
        shapes = shapes_for(dim, 2)
        for kernel, shape in (
            (triton_forward.forward_kernel, shapes.forward),
            (triton_backward.dkv_kernel, shapes.dkv),
            (triton_backward.dq_kernel, shapes.dq),
        ):
            for mask, is_step in ((CAUSAL, False), (RANGES, True))[dim != 128 :]:
                constants = {"HEADS": 16, "GROUP": 4 if is_step else 1, "D": dim, "MASK": mask, "UPCAST": False}
                constants |= {"BLOCK_D": triton.next_power_of_2(dim), "CARRY": is_step, "ACCUMULATE": is_step}
                constants |= {"BLOCK_Q": shape.tile.queries, "BLOCK_K": shape.tile.keys}
                results = dict.fromkeys(("out_ptr", "dq_ptr"), "*fp32" if is_step else "*bf16")
                source = _source(ASTSource, kernel, constants, tensors | results)
                options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
                yield Kernel(f"{kernel.__name__} d{dim} mask {mask}", source, options)
    rows: list[tuple[Any, dict[str, Any]]] = [
        (delta_kernel, {"HEADS": 16, "D": 128, "BLOCK_D": 128, "ROWS": 64}),
        (pad_statistics_kernel, {}),
        (scale_kernel, {"ACCUMULATE": True, "VALUES": 4096}),
        (
            fill_kernel,
            {
                "HEADS": 4,
                "BLOCK_HEADS": 4,
                "D": 128,
                "ROWS": 64,
                "STATISTICS": False,
                "lse_ptr": None,
                "delta_ptr": None,
            },
        ),
        (fill_kernel, {"HEADS": 16, "BLOCK_HEADS": 16, "D": 128, "ROWS": 64, "STATISTICS": True}),
    ]
    for kernel, constants in rows:
        integers, halves = ("blocks_ptr", "own_ptr"), ("first_ptr", "second_ptr", "stage_ptr")
        floats = {x: "*fp32" for x in kernel.arg_names if x.endswith("_ptr") and x not in integers}
        floats |= dict.fromkeys(halves, "*bf16")
        yield Kernel(kernel.__name__, _source(ASTSource, kernel, constants, floats))


def hopper_kernels() -> Iterator[Kernel]:
    """The Gluon kernels: at head dim 64 a step over ranges with GQA, at 128 also a causal mask; the fused backward."""
    for dim in (64, 128):
        for kernel in (hopper_forward.forward_kernel, hopper_backward.dkv_kernel, hopper_dq.dq_kernel):
            plain = {"HEADS": 16, "KV_HEADS": 16, "GROUP": 1, "D": dim, "WITH_DQ": False, "dq_desc": None}
            plain |= {"PULLED": 0} | dict.fromkeys(STAGE)
            variants = [
                plain | {"MASK": CAUSAL, "CARRY": False, "ACCUMULATE": False, "seen_ptr": None},
                plain | {"MASK": RANGES, "KV_HEADS": 4, "GROUP": 4, "CARRY": True, "ACCUMULATE": True},
            ]
            if dim == 64:
                variants = variants[1:]
            elif kernel is hopper_backward.dkv_kernel:
                fused = {name: value for name, value in variants[0].items() if name != "dq_desc"}
                variants.append(fused | {"WITH_DQ": True})
            for variant in variants:
                types = _hopper_types(dim, 64 if kernel is hopper_backward.dkv_kernel else 128, bool(variant["CARRY"]))
                name = f"hopper {kernel.__name__} d{dim} mask {variant['MASK']} dq {variant['WITH_DQ']}"
                yield Kernel(name, _source(GluonASTSource, kernel, variant, types))
        for kernel, heads in (
            (hopper_forward.forward_kernel, 2),
            (hopper_dq.dq_kernel, 2),
            (hopper_backward.dkv_kernel, 16),
        ):
            pulled = {"HEADS": 16, "KV_HEADS": 4, "GROUP": 4, "D": dim, "MASK": RANGES, "PULLED": heads}
            pulled |= {"CARRY": False, "ACCUMULATE": False, "WITH_DQ": False, "dq_desc": None}
            types = _hopper_types(dim, 64 if kernel is hopper_backward.dkv_kernel else 128, False)
            yield Kernel(f"hopper {kernel.__name__} d{dim} pulled", _source(GluonASTSource, kernel, pulled, types))


def _hopper_types(dim: int, query_rows: int, is_step: bool) -> dict[str, str]:
    def boxes(dtype: str, bits: int, rows: int, columns: int) -> str:
        return f"tensordesc<{dtype}[1, 1, {rows}, {columns}],{gl.NVMMASharedLayout(128, bits, 4)!r}>"

    queries, keys = ("q_desc", "dout_desc"), ("k_desc", "v_desc")
    result = dict.fromkeys([*queries, *(f"staged_{x}" for x in queries)], boxes("bf16", 16, query_rows, dim))
    result |= dict.fromkeys([*keys, *(f"staged_{x}" for x in keys)], boxes("bf16", 16, 128, dim))
    result |= dict.fromkeys(("lse_desc", "delta_desc"), f"tensordesc<fp32[64],{gl.NVMMASharedLayout(0, 32, 1)!r}>")
    result |= dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32")
    result |= dict.fromkeys(("out_ptr", "dq_ptr", "dkv_ptr"), "*fp32" if is_step else "*bf16")
    return result | {"out_desc": boxes("bf16", 16, 64, dim), "dq_desc": boxes("fp32", 32, 64, dim // 2)}


def _source(kind: Any, kernel: Any, constants: dict[str, Any], types: dict[str, str]) -> Any:
    # what is neither tensor nor number is a table of integers
    tables = {name: "*i32" for name in kernel.arg_names if name.endswith("_ptr")}
    return kind(fn=kernel, **arguments(kernel, tables | SCALARS | types, constants, ALIGNED))
