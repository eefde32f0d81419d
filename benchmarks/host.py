"""What an action takes of the host outside of its stage: clocks, messages, and the sums of gradients.

    PYTHONPATH=. python benchmarks/host.py --transports nccl peer

The colocated plan of benchmarks/train.py with a model of no size, so that no full queue holds the host. Times are the
median over steps of what their reports say (the mean of the slower rank; nothing on CPUs, whose hosts do the work), and
by rank the number of its actions and the means of their kinds, where a ``*`` stands behind those of the boundary.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict

import numpy as np
import torch
import torch.distributed as dist

from benchmarks._vision_language import TINY, RandomSource, builders, make_plan
from hetsched.batch import Batch
from hetsched.runtime.engine import Engine
from hetsched.runtime.measure.recorder import Record
from hetsched.runtime.report import gather_objects
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch


def name_of(record: Record) -> str:
    """Module and kind."""
    module, kind = record.action.module, record.action.kind.name
    return f"{module.split('->')[0]} {kind}*" if "->" in module else f"{module} {kind}"


def work(transport: str, args: argparse.Namespace) -> None:
    """One rank."""
    plan = make_plan("colocated", TINY, gpus=args.gpus, microbatches=args.microbatches, transport=transport)
    engine, source = Engine(plan, builders(TINY)), RandomSource(TINY)
    of_kind: dict[str, list[float]] = defaultdict(list)
    of_step = []
    for step in range(args.warmup + args.steps):
        report = engine.step(Batch.of(source, range(plan.microbatches * step, plan.microbatches * (step + 1))))
        if step >= args.warmup:
            of_step.append(report.runtime_us_per_action or 0.0)
            for record in engine.recorder.records:
                of_kind[name_of(record)].append((record.host_ns - record.stage_host_ns) / 1e3)
    means = {name: round(float(np.mean(times)), 1) for name, times in of_kind.items()}
    of_rank = {"num_actions": len(engine.recorder.records), **dict(sorted(means.items(), key=lambda of: -of[1]))}
    every = gather_objects(of_rank, group=None)
    if dist.get_rank() == 0:
        line = {"transport": transport, "runtime_us_per_action": round(float(np.median(of_step)), 1), "by_rank": every}
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", nargs="+", default=["nccl", "peer"], choices=["gloo", "nccl", "peer"])
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=8, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    if args.gpus < 2 or ("gloo" not in args.transports and torch.cuda.device_count() < args.gpus):
        print("benchmarks/host.py: needs two GPUs or more; nothing was measured", file=sys.stderr)
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(
        json.dumps({"gpu": gpu, "num_gpus": args.gpus, "torch": torch.__version__, "commit": args.commit}), flush=True
    )
    for transport in args.transports:
        launch(work, transport, args, num_ranks=args.gpus, backend="gloo" if transport == "gloo" else BACKEND)


if __name__ == "__main__":
    main()
