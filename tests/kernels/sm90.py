"""Compiles the attention kernels for Hopper without a GPU, and reads registers and spills off the machine code.

Run as a script it prints one line of JSON per kernel. It runs in a process of its own, because Triton's interpreter, which
the other tests use, is chosen when a kernel is defined.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one kernel uses."""

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_accesses: int
    matrix_instructions: int


def compile_kernel(name: str, source: ASTSource, options: dict[str, Any]) -> Compiled:
    """Compile for sm_90a and disassemble."""
    kernel = triton.compile(source, target=TARGET, options=options)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run([str(tools / "cuobjdump"), "--dump-resource-usage", file.name])
        sass = _run([str(tools / "nvdisasm"), "-c", file.name])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Compiled(
        name=name,
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_bytes=int(kernel.metadata.shared),
        local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        matrix_instructions=len(re.findall(r"\b(?:HGMMA|HMMA)\b", sass)),
    )


def ast_source(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> ASTSource:
    """The source of ``kernel`` with every pointer and every stride a multiple of 16, as at run time."""
    names = list(kernel.arg_names)
    signature = {name: types.get(name, "constexpr") for name in names}
    divisible = [i for i, name in enumerate(names) if signature[name].startswith("*") or name.endswith("_stride")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def portable_kernels(head_dims: tuple[int, ...], dtypes: tuple[str, ...]) -> list[Compiled]:
    """The portable kernels for every head dim, dtype and mask kind."""
    from hetsched.kernels.attention.triton import shapes_for
    from hetsched.kernels.attention.rows import delta_kernel
    from hetsched.kernels.attention.triton_backward import dkv_kernel, dq_kernel
    from hetsched.kernels.attention.triton_forward import forward_kernel

    results = []
    for dim in head_dims:
        for dtype in dtypes:
            shapes = shapes_for(dim, 2)
            kernels = ((forward_kernel, shapes.forward), (dkv_kernel, shapes.dkv), (dq_kernel, shapes.dq))
            for kernel, shape in kernels:
                for mask in (1, 2):
                    constants = {
                        **{"HEADS": 16, "GROUP": 4, "D": dim, "BLOCK_D": triton.next_power_of_2(dim)},
                        **{"BLOCK_Q": shape.tile.queries, "BLOCK_K": shape.tile.keys, "MASK": mask},
                        **{"CARRY": mask == 2, "ACCUMULATE": mask == 2, "UPCAST": False},
                    }
                    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
                    source = ast_source(kernel, _portable_types(kernel, constants, dtype), constants)
                    options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
                    name = f"{kernel.__name__} {dtype} d{dim} mask{mask}"
                    results.append(compile_kernel(name, source, options))
    constants = {"HEADS": 16, "D": 128, "BLOCK_D": 128, "ROWS": 64}
    types = {"out_ptr": "*bf16", "dout_ptr": "*bf16", "delta_ptr": "*fp32", "num_rows": "i32"}
    results.append(compile_kernel("delta_kernel", ast_source(delta_kernel, types, constants), {"num_warps": 4}))
    return results


def _portable_types(kernel: Any, constants: dict[str, Any], dtype: str) -> dict[str, str]:
    types = {name: f"*{dtype}" for name in ("q_ptr", "k_ptr", "v_ptr", "dout_ptr", "dk_ptr", "dv_ptr")}
    is_sum = constants.get("CARRY") or constants.get("ACCUMULATE")
    types |= {name: "*fp32" if is_sum else f"*{dtype}" for name in ("out_ptr", "dq_ptr")}
    types |= {name: "*fp32" for name in ("lse_ptr", "delta_ptr")}
    types |= {name: "*i32" for name in ("lo_ptr", "hi_ptr", "seen_ptr", "tiles_ptr", "order_ptr")}
    types |= {name: "i32" for name in ("num_rows", "padded_rows", "total_keys", "q_stride", "k_stride", "v_stride")}
    types |= {name: "fp32" for name in ("scale_log2", "scale")}
    return {name: kind for name, kind in types.items() if name in kernel.arg_names}


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    import sys

    arguments = sys.argv[1:]
    if arguments[0] == "portable":
        results = portable_kernels(tuple(int(dim) for dim in arguments[1:]), ("bf16",))
    for result in results:
        print(json.dumps(vars(result)), flush=True)
