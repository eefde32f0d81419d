"""Packages hetsched; CMakeLists.txt, driven from here with Ninja, says how its compiled parts are built."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / "cmake"


def find_tool(name: str) -> str:
    """The path of a build tool: the one installed beside this interpreter, otherwise the system's."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which(name, path=beside)
    if path is None:
        raise SystemExit(f"{name} was not found: install it with `pip install {name}` or from the system's packages")
    return path


def find_cuda() -> list[str]:
    """CMake's options for hetsched/_cuda.so, which is built where there are nvcc and torch's headers."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(os.environ.get("CUDA_HOME", ""), "bin"))
    torch = importlib.util.find_spec("torch")
    if nvcc is None or torch is None or torch.origin is None:
        missing = "nvcc" if nvcc is None else "torch"
        print(f"hetsched/_cuda.so is not built: {missing} was not found; only rows put into a peer GPU need it")
        return ["-DHETSCHED_CUDA=OFF"]
    torch_dir = Path(torch.origin).parent
    return ["-DHETSCHED_CUDA=ON", f"-DHETSCHED_TORCH_DIR={torch_dir}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]


class CMakeBuild(build_ext):  # type: ignore[misc]  # setuptools is untyped
    """Builds all of CMakeLists.txt and puts the extension, and _cuda.so beside it, where setuptools looks for it."""

    def build_extension(self, ext: Extension) -> None:
        cmake = find_tool("cmake")
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(BUILD_DIR), "-G", "Ninja", "--log-level=WARNING"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *find_cuda(),
        ]
        subprocess.run(configure, check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run([cmake, "--build", str(BUILD_DIR), "--parallel", jobs], check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(BUILD_DIR / target.name, target)
        self.copy_cuda(target.parent)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        self.copy_cuda(ROOT / "hetsched")

    def copy_cuda(self, folder: Path) -> None:
        """_cuda.so is built only where there is nvcc, so setuptools is not told of it."""
        if (BUILD_DIR / "_cuda.so").exists():
            shutil.copy2(BUILD_DIR / "_cuda.so", folder)


# torch is an extra: what decides works without it, and only _cuda.so is compiled against it.
DEMO = ["torch>=2.11", "scikit-learn"]
DEV = [*DEMO, "triton", "pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"]

setup(
    name="hetsched",
    version="0.1.0",
    description="Pipeline schedules for multimodal training in which every module keeps its own parallel layout",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["hetsched", "hetsched.*"]),
    package_data={"hetsched": ["py.typed", "*.pyi", "show/page*"]},
    install_requires=["numpy>=2"],
    extras_require={"demo": DEMO, "dev": DEV},
    entry_points={"console_scripts": ["hetsched = hetsched.cli:main"]},
    ext_modules=[Extension("hetsched._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
