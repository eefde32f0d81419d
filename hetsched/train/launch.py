"""Starts the ranks of a job on this host, watches them, and leaves none behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from hetsched.errors import HetschedError, JobError

GRACE_S = 5.0
"""Seconds that the other ranks have to end after one has failed."""


def launch(worker: Callable[..., None], *args: Any, num_ranks: int) -> None:
    """Run ``worker(*args)`` on ``num_ranks`` new processes, with torch.distributed initialized (gloo).

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) this process is already a rank: it runs the worker itself.

    Raises:
        JobError: a rank failed or was killed, naming it; by then all of them have ended.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
        try:
            worker(*args)
        finally:
            dist.destroy_process_group()
        return
    with tempfile.TemporaryDirectory(prefix="hetsched-") as folder:
        # One server imports torch (with the compiler, which its optimizers ask for) and then forks all ranks.
        multiprocessing.set_forkserver_preload(["torch._dynamo", worker.__module__])
        context = start_processes(  # type: ignore[no-untyped-call]
            _rank_main, args=(num_ranks, folder, worker, args), nprocs=num_ranks, join=False, start_method="forkserver"
        )
        assert context is not None
        try:
            while not context.join(timeout=1.0, grace_period=GRACE_S):
                pass
        except ProcessExitedException as error:
            raise JobError(_what_happened(Path(folder), error)) from None
        finally:
            _end(context)


def _rank_main(rank: int, num_ranks: int, folder: str, worker: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_ranks))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    try:
        worker(*args)
        dist.destroy_process_group()
    except HetschedError as error:
        _leave(folder, rank, f"{type(error).__name__}: {error}")
    except Exception:
        _leave(folder, rank, traceback.format_exc())


def _leave(folder: str, rank: int, message: str) -> None:
    """Say why this rank fails, and end it at once: its peers may never answer again."""
    Path(folder, f"rank-{rank}").write_text(message, encoding="utf-8")
    os._exit(1)


def _what_happened(folder: Path, error: ProcessExitedException) -> str:
    """One message for the job: what each rank said of itself, or which signal ended the first."""
    said: dict[str, list[int]] = {}
    for path in sorted(folder.glob("rank-*"), key=lambda p: int(p.name.split("-")[1])):
        said.setdefault(path.read_text(encoding="utf-8"), []).append(int(path.name.split("-")[1]))
    if error.signal_name is not None:
        return f"rank {error.error_index} was ended by {error.signal_name}; the other ranks were stopped"
    if not said:
        return f"rank {error.error_index} ended with exit code {error.exit_code}"
    return "\n".join(f"rank {', '.join(map(str, ranks))}: {message}" for message, ranks in said.items())


def _end(context: ProcessContext) -> None:
    """Leave no rank behind, whatever happened here."""
    for process in context.processes:
        if process.is_alive():
            process.terminate()
    for process in context.processes:
        process.join(GRACE_S)
        if process.is_alive():
            with suppress(ProcessLookupError):
                process.kill()
            process.join()
