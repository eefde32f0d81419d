"""Who may import whom: deciding never imports torch, doing may import deciding, and arrows point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Deciding, from what all may import to what may import all before it.
ORDER = (
    *("errors", "batch"),
    *("layout", "schedule", "exchange", "lower", "check", "sim", "show"),
    *("config", "plan", "graph", "estimate", "stepprogram", "stepplan", "cli", "__init__"),
)
DOING = frozenset({"kernels", "ops", "runtime", "parallel", "models", "train"})
# The faces of the package: they may import doing inside a function, when a command or a name asks for it.
LAZY = frozenset({"cli", "__init__"})
# All that these may know of the runtime is the contract of a stage.
STAGE_ONLY = frozenset({"models", "kernels", "parallel"})
STAGE = "hetsched.runtime.stage"


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name, and where in the file it is imported."""

    name: str
    line: int
    is_lazy: bool
    is_typing: bool


def imports_of(source: str) -> Iterator[Import]:
    """Every import of a file; of ``from a import b`` the module is taken to be ``a.b``."""

    def walk(node: ast.AST, is_lazy: bool, is_typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, is_lazy, is_typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where the arrow points"
            yield from (Import(f"{node.module}.{a.name}", node.lineno, is_lazy, is_typing) for a in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for statement in node.body:
                yield from walk(statement, is_lazy, True)
            for statement in node.orelse:
                yield from walk(statement, is_lazy, is_typing)
        else:
            is_lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, is_lazy, is_typing)

    yield from walk(ast.parse(source), False, False)


def area_of(module: str) -> str | None:
    """The part of hetsched that a module's full name lies in, or None for other packages."""
    parts = module.split(".")
    if parts[0] != "hetsched":
        return None
    known = len(parts) > 1 and (parts[1] in ORDER or parts[1] in DOING or parts[1] == "_core")
    return parts[1] if known else "__init__"


def fault_of(area: str, imported: Import) -> str | None:
    """Why a file of ``area`` must not have this import, or None if it may."""
    is_torch = imported.name.split(".")[0] in ("torch", "triton")
    target = area_of(imported.name)
    if area in ORDER:
        if is_torch:
            return None if imported.is_typing else f"{area} decides, and deciding never imports torch"
        if target in DOING and not (area in LAZY and (imported.is_lazy or imported.is_typing)):
            return f"{area} decides, and deciding never imports {target}"
        # `from hetsched import _core` names the package only on its way to the core.
        if target in ORDER and target != "__init__" and ORDER.index(target) > ORDER.index(area):
            return f"the arrow points from {area} to {target}, against the order of the layers"
    elif area in STAGE_ONLY and target == "runtime" and not (imported.name + ".").startswith(STAGE + "."):
        return f"{area} may know {STAGE}, and nothing else of the runtime"
    return None


def faults_of(area: str, source: str) -> list[str]:
    faults = ((imported, fault_of(area, imported)) for imported in imports_of(source))
    return [f"line {imported.line}: {imported.name}: {fault}" for imported, fault in faults if fault]


def area_of_file(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "hetsched" else parts[0]


FILES = sorted([*(ROOT / "hetsched").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_as_the_design_says(path: Path) -> None:
    area = area_of_file(path)
    assert area in ORDER or area in DOING, f"{area} is new: say here whether it decides or does"
    assert faults_of(area, path.read_text()) == []


@pytest.mark.parametrize(
    ("area", "source", "fault"),
    [
        ("layout", "import torch", "never imports torch"),
        ("plan", "from torch.distributed import init_process_group", "never imports torch"),
        ("cli", "def main():\n    import torch", "never imports torch"),
        ("sim", "if True:\n    import triton", "never imports torch"),
        ("schedule", "from hetsched.lower.transfers import lower", "against the order"),
        ("lower", "from hetsched import check", "against the order"),
        ("layout", "def f():\n    from hetsched.sim import costs", "against the order"),
        ("stepplan", "from hetsched.runtime.engine import Engine", "never imports runtime"),
        ("stepplan", "def f():\n    from hetsched.runtime.engine import Engine", "never imports runtime"),
        ("cli", "from hetsched.train import trainer", "never imports train"),
        ("models", "from hetsched.runtime.engine import Engine", "nothing else of the runtime"),
        ("kernels", "import hetsched.runtime", "nothing else of the runtime"),
        ("parallel", "from hetsched.runtime.measure.context_meter import ContextMeter", "nothing else of the runtime"),
        ("models", "from hetsched.runtime import stage_registry", "nothing else of the runtime"),
    ],
)
def test_an_import_that_breaks_the_rules_is_found(area: str, source: str, fault: str) -> None:
    (found,) = faults_of(area, source)
    assert fault in found


@pytest.mark.parametrize(
    ("area", "source"),
    [
        ("batch", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("cli", "def main():\n    from hetsched.train.trainer import train"),
        ("show", "from hetsched.sim.timeline import Timeline"),
        ("layout", "from hetsched import _core"),
        ("runtime", "import torch\nfrom hetsched.stepplan import StepPlan"),
        ("models", "from hetsched.runtime.stage import StageMeta"),
        ("models", "from hetsched.runtime import stage"),
    ],
)
def test_an_import_that_keeps_the_rules_passes(area: str, source: str) -> None:
    assert faults_of(area, source) == []


def modules_loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-c", statement]
    report = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stderr
    return {line.rsplit("|", 1)[1].strip() for line in report.splitlines() if line.startswith("import time:")}


def test_import_hetsched_loads_no_torch() -> None:
    files = (path.relative_to(ROOT) for path in FILES if area_of_file(path) in ORDER and path.stem != "__init__")
    deciding = {".".join(path.with_suffix("").parts) for path in files}
    loaded = modules_loaded_by(f"import hetsched, {', '.join(sorted(deciding))}")
    assert loaded >= {"hetsched", *deciding}
    assert not {name for name in loaded if name.split(".")[0] in ("torch", "triton")}


def test_the_import_report_would_show_torch() -> None:
    assert "torch" in modules_loaded_by("import torch")
