"""Starts the ranks of a job on this host, watches them, and leaves none behind."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hetsched.errors import HetschedError, JobError
from hetsched.runtime.transport.streamed import prepare_environment

GRACE_S = 5.0
"""Seconds that the other ranks have to end after one has failed, and once more after they are told to."""


def launch(worker: Callable[..., None], *args: Any, num_ranks: int, backend: str = "gloo") -> None:
    """Run ``worker(*args)`` on ``num_ranks`` new processes, with torch.distributed initialized.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) this process is already a rank: it runs the worker itself, and
    with NCCL it says what failed and ends.

    Args:
        worker: what each rank does; a function of a module, which the new processes import.
        args: what it is given.
        num_ranks: ranks of the job, all of them on this host.
        backend: of torch.distributed; NCCL's is hetsched.runtime.transport.nccl.BACKEND.

    Raises:
        TypeError: the worker is no function of a module.
        JobError: a rank failed or was killed, naming it; by then all of them have ended.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _prepare(backend)
        dist.init_process_group(backend)
        try:
            worker(*args)
        except Exception as error:
            if "nccl" in backend:
                # To destroy NCCL's groups is to wait for messages whose peer may be gone.
                sys.stderr.write(f"{_told(error)}\n")
                sys.stderr.flush()
                os._exit(1)
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()
        return
    _check_can_be_sent(worker)
    # One server imports torch (with the compiler, which its optimizers ask for) and then forks all ranks.
    # What it forks cannot use CUDA if the server has asked for it, as some modules do when they are imported.
    context: ForkServerContext | SpawnContext = multiprocessing.get_context("forkserver")
    is_spawned = "nccl" in backend
    if is_spawned:
        context = multiprocessing.get_context("spawn")
    context.set_forkserver_preload(["torch._dynamo", worker.__module__])
    if not is_spawned:
        with _ctrl_c_held():
            forkserver.ensure_running()
    ranks: list[BaseProcess] = []
    with tempfile.TemporaryDirectory(prefix="hetsched-") as folder:
        try:
            for rank in range(num_ranks):
                process = context.Process(target=_rank_main, args=(rank, num_ranks, folder, backend, worker, args))
                with _ctrl_c_held() if is_spawned else nullcontext():
                    process.start()
                ranks.append(process)
            failed = _wait_for_all(ranks)
        finally:
            _end(ranks)
        if failed:
            raise JobError(_what_happened(Path(folder), failed))


def _check_can_be_sent(worker: Callable[..., None]) -> None:
    try:
        pickle.dumps(worker)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"the worker cannot be sent to other processes ({error}): it must be a function of a module, not a lambda "
            f"or a function made in another one; give it what it needs as arguments of launch"
        ) from None


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Ctrl-C waits until the end, and what is started meanwhile never meets it: the launcher ends it.

    A new interpreter would answer with a traceback while it imports torch, before any code of ours could ignore it.
    """
    # The tracker takes Ctrl-C out of the mask as it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rank_main(
    rank: int, num_ranks: int, folder: str, backend: str, worker: Callable[..., None], args: tuple[Any, ...]
) -> None:
    # Ctrl-C reaches every process of the terminal; the launcher alone decides what follows, and ends the ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    if not launcher.is_alive():
        # It was interrupted while this rank was on its way. To look for the store in its folder, which is gone, holds
        # the interpreter, and with it the thread that ends ranks without a launcher.
        os._exit(1)
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    # A rank whose own thread is held is ended from another one, as by hetsched.runtime.watchdog.
    threading.excepthook = functools.partial(_leave_from_thread, folder, rank)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_ranks))
    try:
        _prepare(backend)
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
        worker(*args)
        dist.destroy_process_group()
    except Exception as error:
        _leave(folder, rank, _told(error))


def _told(error: Exception) -> str:
    """What people are told of an error that ends a rank: where it was raised, unless it says what to change."""
    if isinstance(error, HetschedError):
        return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    return "".join(traceback.format_exception(error))


def _prepare(backend: str) -> None:
    if "nccl" in backend:
        prepare_environment()


def _end_with(launcher: BaseProcess) -> None:
    """A launcher that was killed cannot end its ranks."""
    launcher.join()
    os._exit(1)


def _leave(folder: str, rank: int, message: str) -> None:
    """Say why this rank fails, and end it at once: its peers may never answer again."""
    Path(folder, f"rank-{rank}").write_text(message, encoding="utf-8")
    os._exit(1)


def _leave_from_thread(folder: str, rank: int, args: threading.ExceptHookArgs) -> None:
    if isinstance(args.exc_value, HetschedError):
        _leave(folder, rank, f"{args.exc_type.__name__}: {args.exc_value}")
    threading.__excepthook__(args)


def _wait_for_all(ranks: Sequence[BaseProcess]) -> dict[int, int]:
    """Wait until all ranks have ended, or one has failed: the exit code of each that has by itself."""
    running = {process.sentinel: process for process in ranks}
    while running:
        for sentinel in wait(list(running)):
            process = running.pop(sentinel)  # type: ignore[arg-type]  # sentinels are integers here
            process.join()
            if process.exitcode != 0:
                _join(ranks)
                return {rank: p.exitcode for rank, p in enumerate(ranks) if p.exitcode}
    return {}


def _what_happened(folder: Path, failed: dict[int, int]) -> str:
    """One message for the job: what each rank said, and who was ended by a signal (the others then fail too)."""
    said: dict[str, list[int]] = {}
    for rank, code in failed.items():
        path = folder / f"rank-{rank}"
        if code > 0:
            message = path.read_text(encoding="utf-8") if path.exists() else f"ended with exit code {code}"
            said.setdefault(message, []).append(rank)
    killed = [f"rank {rank} was ended by {signal.Signals(-code).name}" for rank, code in failed.items() if code < 0]
    causes_first = sorted(said.items(), key=lambda of: _is_consequence(of[0]))
    lines = [f"{_named(of)}: {what}" for what, of in causes_first if not (killed and _is_consequence(what))]
    return "\n".join([*lines, f"{', '.join(killed)}; the other ranks were stopped"] if killed else lines)


def _named(ranks: Sequence[int]) -> str:
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks))}"


def _is_consequence(message: str) -> bool:
    """Whether a rank only says that another one is gone, or late."""
    return message.startswith("JobError: ") or "gloo/transport" in message


def _end(ranks: Sequence[BaseProcess]) -> None:
    """Leave no rank behind, whatever happened here."""
    for stop in (BaseProcess.terminate, BaseProcess.kill):
        for process in ranks:
            if process.is_alive():
                stop(process)
        _join(ranks)


def _join(ranks: Sequence[BaseProcess]) -> None:
    """Give the ranks ``GRACE_S`` together to end."""
    deadline = time.monotonic() + GRACE_S
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
