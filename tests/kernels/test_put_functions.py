"""What ``hetsched/_cuda.so`` says of wrong arguments, and that it says why it cannot be loaded; without a GPU.

Here torch has no CUDA, so one function that the library asks of it is made up, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

import hetsched
from hetsched.kernels.put import library

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not (Path(hetsched.__file__).parent / "_cuda.so").exists(), reason="_cuda.so was not built"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="calls that are right here would reach a GPU"),
]
STREAM = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { *stream = 0; return 0; }"
CALL = """
import ctypes, sys, torch
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
from hetsched import _cuda
for call in sys.argv[2:]:
    try:
        eval(call)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""
NO_GPU = "RuntimeError: current device: "
NO_NUMBER = "cannot be interpreted as an integer"
REST = "0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0"
SAID = {
    "_cuda.stream_write_value(1, 2)": "RuntimeError: expected 3 arguments, got 2",
    "_cuda.stream_write_value(1, 'a', 0)": f"TypeError: 'str' object {NO_NUMBER}",
    "_cuda.stream_write_value(1, 2**32, 0)": NO_GPU,
    "_cuda.wait_for_counts((), (), 0, 0)": "RuntimeError: there must be counters, and as many values: 0 and 0",
    "_cuda.wait_for_counts((1,), (2, 3), 0, 0)": "RuntimeError: there must be counters, and as many values: 1 and 2",
    "_cuda.wait_for_counts([1], (2,), 0, 0)": "RuntimeError: expected a tuple",
    "_cuda.wait_for_counts((1,), (2,), 0, 0)": NO_GPU,
    f"_cuda.put_message(1, 2, 3, ((0, 0),), {REST})": "RuntimeError: expected tuples of 3",
    f"_cuda.put_message(1, 2, 3, ((0, 0, None),), {REST})": f"TypeError: 'NoneType' object {NO_NUMBER}",
    f"_cuda.put_message(1, 2, 3, ((0, 0, 1),), {REST})": NO_GPU,
}


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    stub = tmp_path / "stub.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(stub)], input=STREAM, text=True, check=True)
    command = [sys.executable, "-c", CALL, str(stub), *SAID]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for (call, expected), said in zip(SAID.items(), run.stdout.splitlines(), strict=True):
        assert said.startswith(expected), call


def test_a_library_that_cannot_be_loaded_is_named() -> None:
    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        reason = library.missing.__wrapped__()
    assert reason is not None
    assert reason.startswith("_cuda.so cannot be loaded: ")
