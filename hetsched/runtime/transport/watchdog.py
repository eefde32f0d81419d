"""Bounds how long a stream waits for a peer: a stream's wait has no timeout of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from datetime import timedelta

import torch

logger = logging.getLogger("hetsched")

EXIT_CODE = 1


class Watchdog:
    """Ends the process, with a report, when a stream has waited too long.

    A stream that waits for a counter cannot be called back, so nothing less than the end of the process frees it.

    Args:
        timeout: how long one wait may last once those before it on its stream are over.
        rank: this process.
    """

    def __init__(self, *, timeout: timedelta, rank: int) -> None:
        self._timeout_s, self._rank = timeout.total_seconds(), rank
        self._lock = threading.Lock()
        self._waits: dict[int, deque[tuple[torch.cuda.Event, str]]] = {}
        self._since: dict[int, float] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hetsched watchdog", daemon=True)
        self._thread.start()

    def watch(self, what: str) -> None:
        """Watch the wait that was just enqueued on the current stream; ``what`` reports it."""
        stream = torch.cuda.current_stream()
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        with self._lock:
            waits = self._waits.setdefault(stream.cuda_stream, deque())
            if not waits:
                self._since[stream.cuda_stream] = time.monotonic()
            waits.append((event, what))

    def close(self) -> None:
        """Stop watching."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.wait(min(1.0, self._timeout_s / 4)):
            late = self._late()
            if late is not None:
                logger.error("rank %d gives the job up: after %g s %s", self._rank, self._timeout_s, late)
                os._exit(EXIT_CODE)

    def _late(self) -> str | None:
        """What has been waited for too long, if anything."""
        now = time.monotonic()
        with self._lock:
            for stream, waits in self._waits.items():
                while waits and waits[0][0].query():  # type: ignore[no-untyped-call]
                    waits.popleft()
                    self._since[stream] = now
                if waits and now - self._since[stream] > self._timeout_s:
                    return waits[0][1]
        return None
