"""A pool of worker processes that stay for a whole test run; each test makes a gloo group of some of them."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class RanksFailed(Exception):  # noqa: N818  # it is a report of several failures
    """What each failed rank raised: rank -> (class name, text)."""

    def __init__(self, failures: dict[int, tuple[str, str]]) -> None:
        self.failures = failures
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, (_, text) in failures.items()))


class Pool:
    """Up to ``size`` ranks."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed.pipelining", "hetsched.runtime.engine"])
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, num_ranks: int, timeout_s: float = 300.0) -> list[Any]:
        """``function(*args)`` on ranks 0 to ``num_ranks - 1`` of a fresh gloo group; each rank's result.

        Raises:
            RanksFailed: some rank raised.
        """
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self._pipes[:num_ranks]):
                pipe.send((function, args, rank, num_ranks, str(Path(folder, "store"))))
            results, failures = [], {}
            for rank, pipe in enumerate(self._pipes[:num_ranks]):
                if not pipe.poll(timeout_s):
                    raise TimeoutError(f"rank {rank} of {function.__name__} said nothing for {timeout_s} s")
                is_fine, value = pipe.recv()
                results.append(value)
                if not is_fine:
                    failures[rank] = value
        if failures:
            raise RanksFailed(failures)
        return results

    def close(self) -> None:
        """End all workers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            function, args, rank, num_ranks, store = pipe.recv()
        except EOFError:
            return
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60)
            )
            answer = (True, function(*args))
            if dist.is_initialized():
                # Who leaves early closes connections on which others may still have something to read.
                with suppress(RuntimeError):
                    dist.barrier()
        except Exception as error:
            answer = (False, (type(error).__name__, "".join(traceback.format_exception(error))))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(answer)
