"""Compiles the row kernels for Hopper without a GPU and prints what their machine code uses, one line of JSON each.

A script, because Triton chooses between interpreter and compiler when a kernel is defined.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hetsched.kernels.rows import triton as rows
from hetsched.kernels.rows import triton_sum

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def source(kernel: Any, types: Mapping[str, Any], constants: Mapping[str, Any]) -> ASTSource:
    """The kernel as it is launched for aligned tensors and a hidden size that 16 divides."""
    names = list(kernel.arg_names)
    signature = {name: types.get(name, "constexpr") for name in names}
    attributes: dict[tuple[int, ...], Any] = {}
    for position, name in enumerate(names):
        kind = signature[name]
        parts = (
            [((position, i), part) for i, part in enumerate(kind)] if isinstance(kind, tuple) else [((position,), kind)]
        )
        for path, part in parts:
            if part.startswith("*") or name == "hidden" or "stride" in name:
                attributes[path] = [["tt.divisibility", 16]]
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    return ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def kernels() -> Iterator[tuple[str, ASTSource]]:
    """Every kernel, for each dtype, index dtype and number of encoders that changes its code."""
    ints = (
        "num_tokens",
        "hidden",
        "table_rows",
        "table_stride",
        "vocab_start",
        "vocab_size",
        "num_rows",
        "grad_stride",
    )
    scalars: dict[str, Any] = dict.fromkeys(ints, "i32")
    for dtype, itemsize in (("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp64", 8)):
        block_rows, block_cols = rows.copy_tile(4096, itemsize)
        pointers = {"out": f"*{dtype}", "table": f"*{dtype}", "grad": f"*{dtype}", "record": "*i64"}
        for encoders, index in ((0, "*i64"), (1, "*i32"), (3, "*i64")) if dtype == "bf16" else ((1, "*i64"),):
            types: dict[str, Any] = {
                **{name: kind for name, kind in (scalars | pointers).items() if name in rows._merge_kernel.arg_names},
                "ids": index,
                "slot": index,
                "rows": (f"*{dtype}",) * encoders,
                "starts": ("i32",) * (encoders + 1),
                "row_strides": ("i32",) * encoders,
            }
            constants = {"ROWS": block_rows, "COLS": block_cols}
            yield f"merge {dtype} {encoders} encoders", source(rows._merge_kernel, types, constants)
        wide = "*fp64" if dtype == "fp64" else "*fp32"
        types = scalars | pointers | {"order": "*i64", "sorted_rows": "*i32", "bounds": "*i32", "partials": wide}
        for kernel in (triton_sum._sum_pieces_kernel, triton_sum._sum_partials_kernel):
            is_pieces = kernel is triton_sum._sum_pieces_kernel
            constants = {"SPAN": triton_sum.SPAN, "COLS": triton_sum.sum_cols(4096, itemsize) if is_pieces else 512}
            constants |= {"GROUP": triton_sum.GROUP, "CHAIN": triton_sum.CHAIN}
            yield f"{kernel.__name__} {dtype}", _matching(kernel, types, constants)
    types = scalars | {
        "ids": "*i64",
        "slot": "*i64",
        "order": "*i64",
        "sorted_rows": "*i32",
        "bounds": "*i32",
        "record": "*i64",
    }
    yield "sort_rows", _matching(triton_sum._sort_rows_kernel, types, {"FAULT": 6, "BLOCK": 256})
    types = scalars | {"index": "*i64", "inverse": "*i32", "record": "*i64", "least": "i64"}
    yield "invert", _matching(rows._invert_kernel, types, {"OUT_OF_RANGE": 1, "TWICE": 2, "BLOCK": 512})
    types = scalars | {"cu_seqlens": "*i32", "record": "*i64", "num_seqs": "i32", "max_seqlen": "i32"}
    yield "check_cu_seqlens", _matching(rows._check_cu_seqlens_kernel, types, {"FAULT": 7, "BLOCK": 512})


def _matching(kernel: Any, types: Mapping[str, Any], constants: Mapping[str, Any]) -> ASTSource:
    names = kernel.arg_names
    return source(
        kernel,
        {name: kind for name, kind in types.items() if name in names},
        {name: value for name, value in constants.items() if name in names},
    )


def usage(compiled: Any) -> dict[str, int]:
    """Registers, stack and accesses to local memory, which is where spills go; 16-byte accesses to global memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        resources = subprocess.run(
            [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run(
            [str(TOOLS / "nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert found is not None, resources
    return {
        "registers": int(found[1]),
        "stack_bytes": int(found[2]),
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide_loads": len(re.findall(r"\bLDG\.E\.128\b", sass)),
        "wide_stores": len(re.findall(r"\bSTG\.E\.128\b", sass)),
    }


if __name__ == "__main__":
    for name, kernel in kernels():
        compiled = triton.compile(kernel, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        print(json.dumps({"name": name, **usage(compiled)}), flush=True)
