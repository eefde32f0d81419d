"""How NCCL's functions are called, with a library that notes it in NCCL's place."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
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
int refused = 0, later = 0;
static int note(const char* text) { strcat(said, text); return strstr(text, "of 13 ") ? refused : 0; }
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
int ncclCommGetAsyncError(void* comm, int* state) {
  static int num_asked = 0;
  note("asked\n");
  *state = ++num_asked < 3 ? 7 : later;
  return 0;
}
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


@pytest.mark.parametrize("is_send", [True, False])
def test_rows_for_one_rank_need_no_group(library: Path, is_send: bool) -> None:
    built = build(library, NOTES)
    Communicator(COMM).move([(ADDRESS, MANY, 3)], STREAM, is_send=is_send)
    [said] = said_by(built)
    assert said.startswith("send" if is_send else "receive")


def answer(built: Any, *, refused: int, later: int = 0) -> None:
    """Have 13 bytes answered with ``refused``, and the question what came of it with 7 twice and ``later`` then."""
    for name, value in (("refused", refused), ("later", later)):
        ctypes.c_int.in_dll(built, name).value = value


def test_what_nccl_refuses_is_told_and_its_group_is_ended(library: Path) -> None:
    built = build(library, NOTES)
    answer(built, refused=5)
    with pytest.raises(JobError, match="NCCL: invalid usage"):
        Communicator(COMM).move([(ADDRESS, 13, 3), (ADDRESS, 12, 1)], STREAM, is_send=True)
    assert said_by(built)[-1] == "end"


@pytest.mark.parametrize("is_refused", [False, True])
def test_what_is_in_progress_is_waited_for(library: Path, is_refused: bool) -> None:
    built = build(library, NOTES)
    answer(built, refused=7, later=5 if is_refused else 0)
    with pytest.raises(JobError, match="NCCL: invalid usage") if is_refused else nullcontext():
        Communicator(COMM).move([(ADDRESS, 13, 1)], STREAM, is_send=True)
    assert said_by(built)[1:] == ["asked", "asked", "asked"]


@pytest.mark.parametrize("is_connected", [False, True])
def test_the_communicator_is_that_of_the_group_which_is_connected_once(library: Path, is_connected: bool) -> None:
    build(library, NOTES)
    asked: list[Any] = []
    backend = SimpleNamespace(
        eager_connect_single_device=asked.append, _comm_ptr=lambda: COMM if asked or is_connected else 0
    )
    group: Any = SimpleNamespace(_get_backend=lambda of: backend if of == device else None)
    device = torch.device("cuda", 1)
    assert Communicator.of(group, device)._handle == COMM
    assert asked == ([] if is_connected else [device])


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
