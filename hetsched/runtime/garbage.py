"""Python's collector of garbage, kept from a job's steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def long_lived() -> Iterator[None]:
    """While it lasts, the collector does not look at what existed before: wrap the loop of steps in it.

    A full collection visits every object that the process has, which with torch are hundreds of thousands: 90 ms in
    which nothing is launched, as often as every other step. What is made and lost inside is still collected.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
