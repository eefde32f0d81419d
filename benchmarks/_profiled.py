"""What the GPUs of a job run in one step, from a profile of each that records nothing of the hosts."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks._idle import Parts, Ran, divide, read_trace
from hetsched.runtime.report import gather_objects


def meet() -> None:
    """Wait until every rank is here with nothing left to do; goes through the hosts, so that no kernel is launched."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.all_reduce(torch.zeros(1))


def profiled(step: Callable[[], object], *, before: Callable[[], object]) -> tuple[Ran, int]:
    """What this rank's GPU ran in a step, and nanoseconds of the host from the step's start to when the GPU was done.

    Args:
        step: all that it gives the GPU belongs to the step.
        before: runs in a session of its own. The first one of a process starts up for hundreds of milliseconds.
    """
    for run in (before, step):
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            meet()
            began = time.perf_counter_ns()
            run()
            torch.cuda.synchronize()
            took_ns = time.perf_counter_ns() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text(encoding="utf-8"))["traceEvents"]), took_ns


def gather_parts(ran: Ran, *, span_ns: int) -> list[Parts]:
    """The parts of the step of every rank, by rank; every rank calls this.

    Args:
        ran: on this rank.
        span_ns: of the step, on this rank; the longest counts.
    """
    every = gather_objects((ran.collective_ns, span_ns), group=None)
    least, longest = min(collective for collective, _ in every), max(span for _, span in every)
    return gather_objects(divide(ran, span_ns=longest, collective_ns=least), group=None)
