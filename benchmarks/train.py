"""Steps of a 0.3B vision encoder and a 1.3B LLM on the GPUs of one host: placements and transports side by side.

    PYTHONPATH=. python benchmarks/train.py --transports nccl peer --microbatches 8 --samples 2

Random weights and samples of 4,096 tokens (a quarter of them from four images), ``--samples`` of them packed into a
microbatch, real backward, AdamW, bf16. Placements are homogeneous (the encoder on the LLM's first stage), colocated
(encoder replicas in the bubbles of the LLM's pipeline) and non-colocated (a GPU for the encoder). The peer is torch's
own 1F1B pipeline, whose first stage encodes. A step's time is the slowest rank's, with planning, loading and the
optimizer. The prediction is the simulated timeline with the durations of the step before the measured one.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks import _torch_pipeline
from benchmarks._vision_language import FULL, LAYOUTS, TINY, RandomSource, Sizes, builders, make_plan, teraflop_of
from hetsched.batch import Batch
from hetsched.runtime.device import peak_memory_bytes
from hetsched.runtime.engine import Engine
from hetsched.runtime.report import StepReport
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.sim.bubble import bubble_fraction
from hetsched.sim.measured import measured_costs
from hetsched.sim.simulate import simulate
from hetsched.train.launch import launch

TORCH = "torch 1F1B"


def optimizer_of(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(parameters), lr=1e-5, fused=True)


def step_seconds(step: Callable[[], object], args: argparse.Namespace) -> list[float]:
    """Of each step after the first ones, on the slowest rank."""
    seconds = []
    for _ in range(args.warmup + args.steps):
        _meet()
        began = time.perf_counter()
        step()
        _meet()
        seconds.append(time.perf_counter() - began)
    return seconds[args.warmup :]


def _meet() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.all_reduce(torch.zeros(1))


def measure_plan(placement: str, transport: str, sizes: Sizes, args: argparse.Namespace) -> dict[str, object]:
    """One placement on one transport: its steps, and one of them as it ran beside its prediction."""
    plan = make_plan(placement, sizes, gpus=args.gpus, microbatches=args.microbatches, transport=transport)
    engine = Engine(plan, builders(sizes, is_compiled=args.compile))
    optimizer = optimizer_of(engine.parameters())
    source, timelines, size = RandomSource(sizes), [], args.microbatches * sizes.num_samples
    batches = (Batch.of(source, range(n, n + size)) for n in count(step=size))
    following = pairwise(batches)

    def step() -> StepReport:
        batch, upcoming = next(following)
        report = engine.step(batch, upcoming=upcoming)
        optimizer.step()
        return report

    seconds = step_seconds(step, args)
    for _ in range(2):
        report = step()
        timelines.append(engine.timeline())
    hidden = {of.name: round(of.hidden, 3) for of in engine.overlap()}
    before, measured = timelines
    predicted = simulate(before.program, measured_costs([before], by_microbatch=True))
    if args.out and dist.get_rank() == 0:
        for name, timeline in (("measured", measured), ("predicted", predicted)):
            path = Path(args.out, f"{placement}-{transport}-{name}.json")
            path.write_text(json.dumps(timeline.to_json()), encoding="utf-8")
    return {
        "placement": placement,
        "transport": transport,
        **figures(seconds, sizes, args),
        "timeline_ms": round(measured.makespan_ns / 1e6, 2),
        "predicted_ms": round(predicted.makespan_ns / 1e6, 2),
        "bubble": round(bubble_fraction(measured), 4),
        "predicted_bubble": round(bubble_fraction(predicted), 4),
        "host_us_per_action": report.host_us_per_action,
        "runtime_us_per_action": report.runtime_us_per_action,
        "hidden": hidden,
    }


def measure_torch(sizes: Sizes, args: argparse.Namespace) -> dict[str, object]:
    """The peer's steps."""
    device = torch.device("cuda", dist.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    module, run = _torch_pipeline.make_step(
        builders(sizes, is_compiled=args.compile), sizes, microbatches=args.microbatches, device=device, dtype=dtype
    )
    optimizer = optimizer_of(module.parameters())

    def step() -> None:
        optimizer.zero_grad()
        run()
        optimizer.step()

    return {"placement": TORCH, "transport": "nccl", **figures(step_seconds(step, args), sizes, args)}


def figures(seconds: list[float], sizes: Sizes, args: argparse.Namespace) -> dict[str, object]:
    """What step times mean; memory of the rank that needs most."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = torch.tensor([float(peak_memory_bytes(device))])
    dist.all_reduce(memory, dist.ReduceOp.MAX)
    median, p20, p80 = (float(x) for x in np.percentile(seconds, (50, 20, 80)))
    num_tokens = args.microbatches * sizes.num_samples * sizes.num_tokens
    return {
        "step_ms": [round(1e3 * x, 2) for x in (p20, median, p80)],
        "tokens_per_s": round(num_tokens / median),
        "teraflops_per_gpu": round(teraflop_of(sizes, microbatches=args.microbatches) / median / args.gpus, 1),
        "memory_gib": round(float(memory) / 2**30, 2),
    }


def work(args: argparse.Namespace) -> None:
    """One rank."""
    sizes = replace(TINY if args.tiny else FULL, num_samples=args.samples)
    cases = [(placement, transport) for placement in args.placements for transport in args.transports]
    for case in cases:
        show(measure_plan(*case, sizes, args), args)
        clear()
    if args.peer:
        show(measure_torch(sizes, args), args)


def clear() -> None:
    """Give up the memory of the last engine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def show(line: dict[str, object], args: argparse.Namespace) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--placements", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--transports", nargs="+", default=["nccl", "peer"], choices=["gloo", "nccl", "peer"])
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2, help="of a microbatch; 4 do not fit 78 GiB on two GPUs")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    parser.add_argument("--compile", action="store_true", help="torch.compile each layer")
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to try the script; gloo runs on CPUs")
    parser.add_argument("--out", help="folder for the timelines, measured and predicted")
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    if args.gpus < 2 or ("gloo" not in args.transports and torch.cuda.device_count() < args.gpus):
        print("benchmarks/train.py: needs two GPUs or more; nothing was measured", file=sys.stderr)
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(
        json.dumps({"gpu": gpu, "num_gpus": args.gpus, "torch": torch.__version__, "commit": args.commit}), flush=True
    )
    launch(work, args, num_ranks=args.gpus, backend=BACKEND if torch.cuda.is_available() else "gloo")


if __name__ == "__main__":
    main()
