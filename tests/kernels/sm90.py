"""Compiles the attention kernels for Hopper without a GPU, and reads registers and spills off the machine code.

Run as a script, ``sm90.py portable`` or ``sm90.py hopper``, it prints one line of JSON per kernel. It runs in a process
of its own, because Triton's interpreter, which the other tests use, is chosen when a kernel is defined.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
FULL, CAUSAL, RANGES = 0, 1, 2
NUMBERS = ("num_rows", "padded_rows", "total_keys", "num_keys", "width", "q_stride", "k_stride", "v_stride")


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one kernel uses; ``local_accesses`` are its loads and stores of spilled registers."""

    name: str
    registers: int
    stack_bytes: int
    local_accesses: int
    wgmma: int


def compile_kernel(name: str, source: ASTSource, options: dict[str, Any]) -> Compiled:
    """Compile for sm_90a and disassemble."""
    kernel = triton.compile(source, target=TARGET, options=options)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run([str(tools / "cuobjdump"), "--dump-resource-usage", file.name])
        code = _run([str(tools / "nvdisasm"), "-c", file.name])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    local_accesses, wgmma = (len(re.findall(pattern, code)) for pattern in (r"\b(?:LDL|STL)\b", r"\bHGMMA\b"))
    return Compiled(name, int(found[1]), int(found[2]), local_accesses, wgmma)


def signature(kernel: Any, constants: dict[str, Any], types: dict[str, str]) -> tuple[dict[str, str], dict[Any, Any]]:
    """Types of all arguments, and what is known to be a multiple of 16: pointers and strides."""
    known = dict.fromkeys(NUMBERS, "i32") | {"scale_log2": "fp32", "scale": "fp32"} | types
    result = {}
    for name in kernel.arg_names:
        result[name] = "constexpr" if name in constants else known.get(name, "*i32")
    divisible = [i for i, (name, kind) in enumerate(result.items()) if kind[0] == "*" or name.endswith("_stride")]
    return result, {(i,): [["tt.divisibility", 16]] for i in divisible}


def portable_kernels() -> Iterator[Compiled]:
    """The portable kernels: every head dim, a plain mask and one from ranges, with and without carry and GQA."""
    from hetsched.kernels.attention.rows import delta_kernel, pad_statistics_kernel, scale_kernel
    from hetsched.kernels.attention.triton import shapes_for
    from hetsched.kernels.attention.triton_backward import dkv_kernel, dq_kernel
    from hetsched.kernels.attention.triton_forward import forward_kernel

    tensors = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "dout_ptr", "dk_ptr", "dv_ptr"), "*bf16")
    tensors |= dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32")
    for dim in (64, 96, 128, 256):
        shapes = shapes_for(dim, 2)
        for kernel, shape in ((forward_kernel, shapes.forward), (dkv_kernel, shapes.dkv), (dq_kernel, shapes.dq)):
            for mask, is_step in ((CAUSAL, False), (RANGES, True)):
                constants = {"HEADS": 16, "GROUP": 4 if is_step else 1, "D": dim, "MASK": mask, "UPCAST": False}
                constants |= {"BLOCK_D": triton.next_power_of_2(dim), "CARRY": is_step, "ACCUMULATE": is_step}
                constants |= {"BLOCK_Q": shape.tile.queries, "BLOCK_K": shape.tile.keys}
                constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
                results = dict.fromkeys(("out_ptr", "dq_ptr"), "*fp32" if is_step else "*bf16")
                source = ASTSource(kernel, *_with_constants(kernel, constants, tensors | results))
                options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
                yield compile_kernel(f"{kernel.__name__} d{dim} mask {mask}", source, options)
    rows: list[tuple[Any, dict[str, Any]]] = [
        (delta_kernel, {"HEADS": 16, "D": 128, "BLOCK_D": 128, "ROWS": 64}),
        (pad_statistics_kernel, {}),
        (scale_kernel, {"ACCUMULATE": True, "VALUES": 4096}),
    ]
    for kernel, constants in rows:
        floats = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr") and name != "blocks_ptr"}
        floats |= {"inverse_scale": "fp32", "num_values": "i32"}
        source = ASTSource(kernel, *_with_constants(kernel, constants, floats))
        yield compile_kernel(kernel.__name__, source, {"num_warps": 4})


def hopper_kernels() -> Iterator[Compiled]:
    """The Gluon kernels: both head dims, every mask, with and without carry and GQA, and the fused backward."""
    from triton.experimental.gluon._runtime import GluonASTSource

    from hetsched.kernels.attention.hopper_backward import dkv_kernel
    from hetsched.kernels.attention.hopper_dq import dq_kernel
    from hetsched.kernels.attention.hopper_forward import forward_kernel

    for dim in (64, 128):
        for kernel in (forward_kernel, dkv_kernel, dq_kernel):
            plain = {"HEADS": 16, "KV_HEADS": 16, "GROUP": 1, "D": dim, "WITH_DQ": False, "dq_desc": None}
            variants = [
                plain | {"MASK": CAUSAL, "CARRY": False, "ACCUMULATE": False, "seen_ptr": None},
                plain | {"MASK": FULL, "CARRY": False, "ACCUMULATE": False, "seen_ptr": None},
                plain | {"MASK": RANGES, "KV_HEADS": 4, "GROUP": 4, "CARRY": True, "ACCUMULATE": True},
            ]
            if kernel is dkv_kernel and dim == 128:
                for variant in variants[:2]:
                    fused = {name: value for name, value in variant.items() if name != "dq_desc"}
                    variants.append(fused | {"WITH_DQ": True})
            for variant in variants:
                constants = {name: value for name, value in variant.items() if name in kernel.arg_names}
                tensors = _hopper_types(dim, 64 if kernel is dkv_kernel else 128, bool(variant["CARRY"]))
                source = GluonASTSource(kernel, *_with_constants(kernel, constants, tensors))
                name = f"hopper {kernel.__name__} d{dim} mask {variant['MASK']} dq {variant['WITH_DQ']}"
                yield compile_kernel(name, source, {"num_warps": 4})


def _hopper_types(dim: int, query_rows: int, is_step: bool) -> dict[str, str]:
    from triton.experimental.gluon import language as gl

    def boxes(dtype: str, bits: int, rows: int, columns: int) -> str:
        return f"tensordesc<{dtype}[1, 1, {rows}, {columns}],{gl.NVMMASharedLayout(128, bits, 4)!r}>"

    result = dict.fromkeys(("q_desc", "dout_desc"), boxes("bf16", 16, query_rows, dim))
    result |= dict.fromkeys(("k_desc", "v_desc"), boxes("bf16", 16, 128, dim))
    result |= dict.fromkeys(("lse_desc", "delta_desc"), f"tensordesc<fp32[64],{gl.NVMMASharedLayout(0, 32, 1)!r}>")
    result |= dict.fromkeys(("lse_ptr", "delta_ptr"), "*fp32")
    result |= dict.fromkeys(("out_ptr", "dq_ptr", "dkv_ptr"), "*fp32" if is_step else "*bf16")
    return result | {"out_desc": boxes("bf16", 16, 64, dim), "dq_desc": boxes("fp32", 32, 64, dim // 2)}


def _with_constants(kernel: Any, constants: dict[str, Any], types: dict[str, str]) -> tuple[Any, Any, Any]:
    kinds, attributes = signature(kernel, constants, types)
    return kinds, constants, attributes


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for compiled in portable_kernels() if sys.argv[1] == "portable" else hopper_kernels():
        print(json.dumps(asdict(compiled)), flush=True)
