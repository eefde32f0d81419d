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
from hetsched.parallel import nccl_calls
from hetsched.parallel.nccl_calls import Communicator

NOTES = r"""
#include <stddef.h>
#include <stdio.h>
#include <string.h>
static char said[8192];
int refused = 0, later = 0, at_end = 0, at_question = 0;
static int note(const char* text) { strcat(said, text); return strstr(text, "of 13 ") ? refused : 0; }
static int moved(const char* verb, void* rows, size_t count, int type, int peer, void* comm, void* stream) {
  char text[256];
  sprintf(text, "%s %p of %zu type %d peer %d by %p on %p\n", verb, rows, count, type, peer, comm, stream);
  return note(text);
}
const char* all_said(void) { return said; }
int ncclGroupStart(void) { return note("start\n"); }
int ncclGroupEnd(void) { note("end\n"); return at_end; }
int ncclSend(void* a, size_t n, int t, int p, void* c, void* s) { return moved("send", a, n, t, p, c, s); }
int ncclRecv(void* a, size_t n, int t, int p, void* c, void* s) { return moved("receive", a, n, t, p, c, s); }
int ncclAllGather(void* a, void* to, size_t n, int t, void* c, void* s) {
  char text[256];
  sprintf(text, "gather %p to %p, %zu type %d by %p on %p\n", a, to, n, t, c, s);
  return note(text);
}
int ncclAllReduce(void* a, void* to, size_t n, int t, int op, void* c, void* s) {
  char text[256];
  sprintf(text, "reduce %p to %p, %zu type %d by %d, %p on %p\n", a, to, n, t, op, c, s);
  return note(text);
}
int ncclCommGetAsyncError(void* comm, int* state) {
  static int num_asked = 0;
  char text[64];
  sprintf(text, "asked %p\n", comm);
  note(text);
  *state = ++num_asked < 3 ? 7 : later;
  return at_question;
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


def test_parts_go_to_all_ranks_within_one_group(library: Path) -> None:
    built = build(library, NOTES)
    Communicator(COMM).all_to_all(ADDRESS, ADDRESS + 2 * MANY, MANY, STREAM, num_ranks=2)
    end = f"by {COMM:#x} on {STREAM:#x}"
    assert said_by(built) == [
        "start",
        f"send {ADDRESS:#x} of {MANY} type 0 peer 0 {end}",
        f"receive {ADDRESS + 2 * MANY:#x} of {MANY} type 0 peer 0 {end}",
        f"send {ADDRESS + MANY:#x} of {MANY} type 0 peer 1 {end}",
        f"receive {ADDRESS + 3 * MANY:#x} of {MANY} type 0 peer 1 {end}",
        "end",
    ]


def test_collectives_are_one_call_each(library: Path) -> None:
    built = build(library, NOTES)
    communicator = Communicator(COMM)
    communicator.all_gather(ADDRESS, ADDRESS + MANY, MANY, STREAM)
    communicator.all_reduce(ADDRESS, MANY, torch.float32, STREAM)
    communicator.all_reduce(ADDRESS, MANY, torch.float64, STREAM)
    assert said_by(built) == [
        f"gather {ADDRESS:#x} to {ADDRESS + MANY:#x}, {MANY} type 0 by {COMM:#x} on {STREAM:#x}",
        f"reduce {ADDRESS:#x} to {ADDRESS:#x}, {MANY} type 7 by 0, {COMM:#x} on {STREAM:#x}",
        f"reduce {ADDRESS:#x} to {ADDRESS:#x}, {MANY} type 8 by 0, {COMM:#x} on {STREAM:#x}",
    ]


def answer(built: Any, **results: int) -> None:
    """Have calls answered otherwise than with 0.

    Args:
        built: the library.
        results: of ``refused``, a move of 13 bytes; ``at_end`` of a group; ``at_question`` what has come of it; and
            what has, which is 7 twice and then ``later``.
    """
    for name, value in results.items():
        ctypes.c_int.in_dll(built, name).value = value


@pytest.mark.parametrize("refused", ["refused", "at_end"])
def test_what_nccl_refuses_is_told_and_its_group_is_ended(library: Path, refused: str) -> None:
    built = build(library, NOTES)
    answer(built, **{refused: 5})
    with pytest.raises(JobError, match="NCCL: invalid usage"):
        Communicator(COMM).move([(ADDRESS, 13, 3), (ADDRESS, 12, 1)], STREAM, is_send=True)
    assert said_by(built)[-1] == "end"


@pytest.mark.parametrize("name", ["all_to_all", "all_gather", "all_reduce"])
def test_a_collective_that_nccl_refuses_is_told(library: Path, name: str) -> None:
    answer(build(library, NOTES.replace('"of 13 "', '" 13 type "')), refused=5)
    communicator = Communicator(COMM)
    calls = {
        "all_to_all": lambda: communicator.all_to_all(ADDRESS, ADDRESS, 13, STREAM, num_ranks=2),
        "all_gather": lambda: communicator.all_gather(ADDRESS, ADDRESS, 13, STREAM),
        "all_reduce": lambda: communicator.all_reduce(ADDRESS, 13, torch.float32, STREAM),
    }
    with pytest.raises(JobError, match="NCCL: invalid usage"):
        calls[name]()


@pytest.mark.parametrize(("refused", "num_asked"), [(None, 3), ("later", 3), ("at_question", 1)])
def test_what_is_in_progress_is_waited_for(library: Path, refused: str | None, num_asked: int) -> None:
    built = build(library, NOTES)
    answer(built, refused=7, **({refused: 5} if refused else {}))
    with pytest.raises(JobError, match="NCCL: invalid usage") if refused else nullcontext():
        Communicator(COMM).move([(ADDRESS, 13, 1)], STREAM, is_send=True)
    assert said_by(built)[1:] == [f"asked {COMM:#x}"] * num_asked


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
