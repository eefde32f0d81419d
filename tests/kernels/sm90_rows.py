"""Every variant of the row kernels, for :mod:`tests.kernels.sm90`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from triton.compiler import ASTSource

from hetsched.kernels.rows import triton as rows
from hetsched.kernels.rows import triton_sum
from tests.kernels.sm90 import Kernel, arguments


def _kernel(name: str, kernel: Any, types: Mapping[str, Any], constants: Mapping[str, Any]) -> Kernel:
    """The kernel as it is launched for aligned tensors and a hidden size that 16 divides."""
    return Kernel(name, ASTSource(fn=kernel, **arguments(kernel, types, constants, ("hidden",))))


def kernels() -> Iterator[Kernel]:
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
                **scalars,
                **pointers,
                "ids": index,
                "slot": index,
                "rows": (f"*{dtype}",) * encoders,
                "starts": ("i32",) * (encoders + 1),
                "row_strides": ("i32",) * encoders,
            }
            constants = {"ROWS": block_rows, "COLS": block_cols}
            yield _kernel(f"merge {dtype} {encoders} encoders", rows._merge_kernel, types, constants)
        wide = "*fp64" if dtype == "fp64" else "*fp32"
        types = scalars | pointers | {"order": "*i64", "sorted_rows": "*i32", "bounds": "*i32", "partials": wide}
        chosen = {"SPAN": triton_sum.SPAN, "GROUP": triton_sum.GROUP, "CHAIN": triton_sum.CHAIN}
        for hidden in (512, 1024, 4096) if dtype == "bf16" else (4096,):
            cols = triton_sum.sum_cols(hidden, itemsize)
            pieces = _kernel(
                f"_sum_pieces {dtype} {hidden}", triton_sum._sum_pieces_kernel, types, chosen | {"COLS": cols}
            )
            options = {"num_warps": triton_sum.num_warps(cols, itemsize), "maxnreg": triton_sum.MAX_REGISTERS}
            yield replace(pieces, options=options)
        yield _kernel(f"_sum_partials {dtype}", triton_sum._sum_partials_kernel, types, chosen | {"COLS": 512})
    types = scalars | {
        "ids": "*i64",
        "slot": "*i64",
        "order": "*i64",
        "sorted_rows": "*i32",
        "bounds": "*i32",
        "record": "*i64",
    }
    yield _kernel("sort_rows", triton_sum._sort_rows_kernel, types, {"FAULT": 6, "BLOCK": 256})
    types = scalars | {"index": "*i64", "inverse": "*i32", "record": "*i64", "least": "i64"}
    yield _kernel("invert", rows._invert_kernel, types, {"OUT_OF_RANGE": 1, "TWICE": 2, "BLOCK": 512})
    types = scalars | {"cu_seqlens": "*i32", "record": "*i64", "num_seqs": "i32", "max_seqlen": "i32"}
    yield _kernel("check_cu_seqlens", rows._check_cu_seqlens_kernel, types, {"FAULT": 7, "BLOCK": 512})
