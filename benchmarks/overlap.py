"""What the recorder says of a context-parallel step's overlap, held against a profile of the same step.

    python benchmarks/overlap.py --json overlap.json --tokens 131072 32768

Runs on all GPUs of a host. A step is a forward and a backward of one attention layer. The profile's figures are taken
from its trace alone: the time of NCCL's kernels or of copies between GPUs, and the part of it in which no other kernel
ran on that GPU. In the recorder's figures a message is under way from when its rows could leave, and exposed while the
stream that computes waits for it. Keys that are pulled are waited for inside of the kernel, which only the profile's
longer kernels show, so for them exposed is the handshake alone. Also says what recording costs the host.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.profiler import ProfilerActivity, profile

from benchmarks._intervals import merged
from benchmarks.attention import Case, environment, heat
from benchmarks.context_parallel import Problem
from hetsched.layout.ways import Way
from hetsched.parallel.context import context_attention
from hetsched.runtime.measure.clock import EventClock
from hetsched.runtime.measure.context_meter import ContextMeter
from hetsched.runtime.measure.recorder import Recorder
from hetsched.schedule.action import Kind, act

WAYS: tuple[Way, ...] = ("ring", "pull", "ulysses")
_NUM_MARKS = 500
"""As many as a stream takes without holding the host."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds of one GPU: messages added up, and the part of it in which nothing was computed."""

    under_way_ms: float
    exposed_ms: float

    @property
    def hidden(self) -> float:
        return 1 - self.exposed_ms / self.under_way_ms if self.under_way_ms else 1.0


class Step:
    """One layer's forward and backward, recorded.

    Args:
        problem: its inputs.
        way: how keys are seen.
    """

    def __init__(self, problem: Problem, way: Way) -> None:
        self.recorder = Recorder(EventClock.of(torch.device("cuda", problem.rank)))
        self._meter = ContextMeter(self.recorder)
        self._task, self._problem = replace(problem.task(way), meter=self._meter), problem

    def __call__(self) -> None:
        (q, k, v), recorder = self._problem.leaves, self.recorder
        recorder.begin_step()
        self._meter.begin_step()
        with recorder.action(act("llm", 0, Kind.F, 0)), recorder.working():
            out = context_attention(q, k, v, self._task, group=dist.group.WORLD)
        with recorder.action(act("llm", 0, Kind.B, 0)), recorder.working():
            torch.autograd.grad(out, (q, k, v), self._problem.dout)
        recorder.end_step()

    def figures(self) -> Figures:
        """The recorder's, of the last call."""
        passed = [p for p in self._meter.passed() if p.num_bytes]
        under_way = sum(p.arrived_ns - p.posted_ns for p in passed)
        return Figures(under_way / 1e6, sum(p.waited_ns for p in passed) / 1e6)

    def milliseconds(self) -> float:
        """Of the last call, from its first moment to its last."""
        return (self.recorder.records[-1].end_ns - self.recorder.records[0].start_ns) / 1e6


def profiled(step: Callable[[], None]) -> Figures:
    """The figures of a call from its trace, the second one, since the first prepares the profiler for long."""
    for _ in range(2):
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            dist.barrier()
            step()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return evaluate(events)


def evaluate(events: Iterable[dict[str, Any]]) -> Figures:
    """The figures of a trace: messages are NCCL's sends and copies between GPUs, work is what is not NCCL's."""
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for event in events:
        is_message = _is_message(event.get("cat", ""), event.get("name", ""))
        if is_message is not None:
            spans[is_message].append((event["ts"], event["ts"] + event["dur"]))
    messages, work = spans[True], spans[False]
    busy = merged(work)
    under_way = sum(end - start for start, end in messages)
    hidden = sum(min(end, b) - max(start, a) for start, end in messages for a, b in busy if a < end and b > start)
    return Figures(under_way / 1e3, (under_way - hidden) / 1e3)


def _is_message(category: str, name: str) -> bool | None:
    """Whether an event of a trace is a message or work; None if neither."""
    is_copy = category == "gpu_memcpy" and ("PtoP" in name or "DtoD" in name)
    if is_copy or "SendRecv" in name:
        return True
    return False if category == "kernel" and "nccl" not in name else None


def mark_us() -> float:
    """Microseconds of the host for a moment, of events that there are already; an action has two, a wait two more."""
    clock = EventClock.of(torch.device("cuda", torch.cuda.current_device()))
    for _ in range(3):
        clock.begin()
        began = time.perf_counter()
        for _ in range(_NUM_MARKS):
            clock.mark()
        spent = time.perf_counter() - began
        clock.end()
    return spent / _NUM_MARKS * 1e6


def measure(problem: Problem, way: Way, *, rounds: int) -> dict[str, Any]:
    """Both figures of one profiled step, and the recorder's of the others."""
    step, alone = Step(problem, way), []
    for number in range(rounds + 3):
        dist.barrier()
        step()
        if number >= 3:
            alone.append((step.milliseconds(), step.figures()))
    dist.barrier()
    from_profile = profiled(step)
    from_recorder = step.figures()
    usual = sorted(alone, key=lambda found: found[0])[rounds // 2]
    mine = {"profile": from_profile, "recorder": from_recorder, "recorder, no profiler": usual[1]}
    figures = {
        name: {"under_way_ms": round(f.under_way_ms, 3), "exposed_ms": round(f.exposed_ms, 3), "hidden": f.hidden}
        for name, f in mine.items()
    }
    return {"case": problem.case.name, "way": way, "step_ms": round(usual[0], 3), **figures}


def work(rank: int, cp: int, port: int, options: argparse.Namespace) -> None:
    torch.cuda.set_device(rank)
    device, address = torch.device("cuda", rank), f"tcp://127.0.0.1:{port}"
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=cp, device_id=device)
    results: list[dict[str, Any]] = []
    heat(0.5)
    # Before the first profile, which slows all that the process launches later.
    of_a_mark = round(mark_us(), 2)
    for tokens in options.tokens:
        problem = Problem(Case(f"{tokens // 1024}k", (tokens,)), rank, cp)
        for way in options.ways:
            if way != "pull" or problem.task(None).heads_of_part:
                results.append(measure(problem, way, rounds=options.rounds))
    every: list[Any] = [None] * cp
    dist.all_gather_object(every, {"results": results, "mark_us": of_a_mark})
    if rank == 0:
        report = json.dumps({"environment": environment(), "ranks": every}, indent=2)
        print(report)
        if options.json:
            options.json.write_text(report)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--tokens", type=int, nargs="+", default=[131072, 32768], help="tokens of all ranks together")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    cp = torch.cuda.device_count()
    if cp < 2:
        print("benchmarks/overlap.py: needs two GPUs; nothing was measured", file=sys.stderr)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(cp, port, options), nprocs=cp)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
