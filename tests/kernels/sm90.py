"""Compiles Triton kernels for Hopper without a GPU and reads off the machine code what it uses.

A script that prints one line of JSON per kernel of a family, ``python -m tests.kernels.sm90 rows``: Triton chooses
between interpreter and compiler when a kernel is defined, so that the tests, which use the interpreter, need another
process. A family is a module ``sm90_<name>`` beside this one, or a part of one, that yields :class:`Kernel`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "rows": ("sm90_rows", "kernels"),
    "attention": ("sm90_attention", "portable_kernels"),
    "attention-hopper": ("sm90_attention", "hopper_kernels"),
    "wrong": ("sm90_wrong", "kernels"),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel as it is launched: an ASTSource, and how to compile it."""

    name: str
    source: Any
    options: dict[str, int] = field(default_factory=lambda: {"num_warps": 4})


@dataclass(frozen=True)
class Usage:
    """What one kernel uses.

    Args:
        local_accesses: loads and stores of spilled registers in the machine code.
        idle_barriers: see :func:`idle_barriers`.
    """

    name: str
    registers: int
    stack_bytes: int
    local_accesses: int
    wide_loads: int
    wide_stores: int
    wgmma: int
    idle_barriers: int


def arguments(
    kernel: Any, types: Mapping[str, Any], constants: Mapping[str, Any], aligned: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Arguments of an ASTSource: types of all parameters, and which values 16 divides.

    Args:
        kernel: the jitted function.
        types: of its parameters, tuples for tuples; names that it lacks are ignored, and what is neither here nor in
            ``constants`` is a compile-time constant.
        constants: compile-time constants; names that the kernel lacks are ignored.
        aligned: scalars that are multiples of 16, besides pointers and strides.
    """
    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in constants else types.get(name, "constexpr") for name in names}
    attributes: dict[tuple[int, ...], Any] = {}
    for position, (name, kind) in enumerate(signature.items()):
        for i, part in enumerate(kind if isinstance(kind, tuple) else (kind,)):
            path = (position, i) if isinstance(kind, tuple) else (position,)
            if part.startswith("*") or "stride" in name or name in aligned:
                attributes[path] = [["tt.divisibility", 16]]
    values = {(names.index(name),): value for name, value in constants.items() if name in names}
    return {"signature": signature, "constexprs": values, "attrs": attributes}


def usage(kernel: Kernel) -> Usage:
    """Compile for sm_90a and disassemble."""
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(kernel.source, target=GPUTarget("cuda", 90, 32), options=kernel.options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        resources = _run(str(tools / "cuobjdump"), "--dump-resource-usage", file.name)
        code = _run(str(tools / "nvdisasm"), "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert found is not None, resources
    patterns = (r"\b(?:LDL|STL)\b", r"\bLDG\.E\.128\b", r"\bSTG\.E\.128\b", r"\bHGMMA\b")
    counts = (len(re.findall(pattern, code)) for pattern in patterns)
    return Usage(kernel.name, int(found[1]), int(found[2]), *counts, idle_barriers(compiled.asm["ttgir"]))


def idle_barriers(ttgir: str) -> int:
    """How many blocks of barriers a kernel makes that no partition of its warps is given, in Triton's GPU dialect.

    Other things lie in their memory too. Barriers of kernels without partitions are the compiler's own.
    """
    given = re.search(r"ttg\.warp_specialize\(([^)]*)\)", ttgir)
    made = re.findall(r"(%\w+) = ttg\.local_alloc : \(\) -> !ttg\.memdesc<\w+xi64", ttgir)
    return 0 if given is None else len(set(made) - set(given[1].split(", ")))


def usage_of(family: str) -> list[dict[str, Any]]:
    """The usage of every kernel of a family, compiled in a process where kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "tests.kernels.sm90", family]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _main(family: str) -> None:
    module, name = FAMILIES[family]
    for kernel in getattr(import_module(f"tests.kernels.{module}"), name)():
        print(json.dumps(asdict(usage(kernel))), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
