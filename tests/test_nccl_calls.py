"""How NCCL's functions are called, with a library that notes it in NCCL's place."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hetsched.errors import JobError
from hetsched.runtime.transport import nccl_calls
from hetsched.runtime.transport.nccl_calls import Communicator

NOTES = r"""
#include <stddef.h>
#include <stdio.h>
#include <string.h>
static char said[4096];
static int note(const char* text) { strcat(said, text); return strstr(text, "of 13 ") ? 5 : 0; }
static int moved(const char* verb, void* rows, size_t count, int type, int peer, void* comm, void* stream) {
  char text[256];
  sprintf(text, "%s %p of %zu type %d peer %d by %p on %p\n", verb, rows, count, type, peer, comm, stream);
  return note(text);
}
const char* all_said(void) { return said; }
int ncclGroupStart(void) { return note("start\n"); }
int ncclGroupEnd(void) { return note("end\n"); }
int ncclSend(void* a, size_t n, int t, int p, void* c, void* s) { return moved("send", a, n, t, p, c, s); }
int ncclRecv(void* a, size_t n, int t, int p, void* c, void* s) { return moved("receive", a, n, t, p, c, s); }
const char* ncclGetErrorString(int result) { return result == 5 ? "invalid usage" : "something else"; }
"""
ADDRESS, MANY, COMM, STREAM = 0x7FFF12345678, 5 << 32, 0x7FFE00000010, 0x5555AAAA0000
"""More than 32 bits each."""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where NCCL is looked for, and nothing was found before."""
    path = tmp_path / "libtorch_cuda.so"
    monkeypatch.setattr(nccl_calls, "_TORCH_LIBRARY", path)
    for cached in (nccl_calls.functions, nccl_calls.missing):
        cached.cache_clear()
    yield path
    for cached in (nccl_calls.functions, nccl_calls.missing):
        cached.cache_clear()


def build(path: Path, source: str) -> Any:
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], input=source, text=True, check=True)
    return ctypes.CDLL(str(path))


def said_by(built: Any) -> list[str]:
    built.all_said.restype = ctypes.c_char_p
    return built.all_said().decode().splitlines()  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_send", [True, False])
def test_rows_are_moved_within_one_group(library: Path, is_send: bool) -> None:
    built = build(library, NOTES)
    assert nccl_calls.missing() is None
    Communicator(COMM).move([(ADDRESS, MANY, 3), (ADDRESS + 8, 0, 1)], STREAM, is_send=is_send)
    verb, end = "send" if is_send else "receive", f"by {COMM:#x} on {STREAM:#x}"
    assert said_by(built) == [
        "start",
        f"{verb} {ADDRESS:#x} of {MANY} type 0 peer 3 {end}",
        f"{verb} {ADDRESS + 8:#x} of 0 type 0 peer 1 {end}",
        "end",
    ]


def test_what_nccl_refuses_is_told_and_its_group_is_ended(library: Path) -> None:
    built = build(library, NOTES)
    with pytest.raises(JobError, match="NCCL: invalid usage"):
        Communicator(COMM).move([(ADDRESS, 13, 3), (ADDRESS, 12, 1)], STREAM, is_send=True)
    assert said_by(built)[-1] == "end"


def test_the_communicator_is_that_of_the_group_once_it_is_connected(library: Path) -> None:
    build(library, NOTES)
    asked: list[Any] = []
    backend = SimpleNamespace(
        eager_connect_single_device=asked.append, _comm_ptr=lambda: COMM if asked else pytest.fail("not connected yet")
    )
    group: Any = SimpleNamespace(_get_backend=lambda of: backend if of == device else None)
    device = torch.device("cuda", 1)
    assert Communicator.of(group, device)._handle == COMM
    assert asked == [device]


@pytest.mark.parametrize(
    ("source", "said"), [(None, "cannot open shared object"), ("int ncclSend(void) { return 0; }", "ncclRecv")]
)
def test_a_torch_through_which_nccl_is_not_found_is_told(library: Path, source: str | None, said: str) -> None:
    if source is not None:
        build(library, source)
    reason = nccl_calls.missing()
    assert reason is not None and said in reason
    with pytest.raises(JobError, match=r"NCCL's functions were not found through libtorch_cuda\.so"):
        Communicator(COMM)
