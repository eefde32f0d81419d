"""Ends a rank whose step stands still and whose own thread cannot say so.

A stream's wait for a peer has no timeout, and some calls of CUDA hold the host for all streams: one loads a kernel.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hetsched.errors import JobError


def end_process(error: Exception) -> None:
    """Give the error to ``threading.excepthook``, through which a launcher hears of it, and end the process."""
    # Called by hand, as threading would end this thread alone.
    args = threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    threading.excepthook(args)
    os._exit(1)


class Watchdog:
    """Watches the steps of one rank from a thread of its own.

    Args:
        limit_s: how long a step may go without progress.
        missing: what the step waits for; called on the watchdog's thread, and must return.
        end: what to do then; by default the process ends.
    """

    def __init__(
        self, *, limit_s: float, missing: Callable[[], str], end: Callable[[Exception], None] = end_process
    ) -> None:
        self._limit_s, self._missing, self._end = limit_s, missing, end
        self._last = 0.0

    @contextmanager
    def watching(self, *, patience: float = 1.0) -> Iterator[None]:
        """Watch what runs inside, on the thread that enters; ``patience`` multiplies the limit."""
        done = threading.Event()
        limit_s = patience * self._limit_s
        self.progress()
        # A thread a step, so that one forgotten with its engine does not live on.
        thread = threading.Thread(target=self._watch, args=(done, limit_s, threading.get_ident()), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()

    def progress(self) -> None:
        """Something went on."""
        self._last = time.monotonic()

    def _watch(self, done: threading.Event, limit_s: float, watched: int) -> None:
        while not done.wait(limit_s / 20):
            if time.monotonic() - self._last > limit_s:
                frame = sys._current_frames().get(watched)
                place = "" if frame is None else f"; the host stands at {frame.f_code.co_filename}:{frame.f_lineno}"
                message = self._missing() + place
                if not done.is_set():
                    self._end(JobError(message))
                return
