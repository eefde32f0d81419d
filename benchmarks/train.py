"""Steps of a 0.3B vision encoder and a 1.3B LLM on the GPUs of one host: placements and transports side by side.

    PYTHONPATH=. python benchmarks/train.py --transports nccl peer --microbatches 8 --samples 2

Random weights and samples of 4,096 tokens (a quarter of them from four images), ``--samples`` of them packed into a
microbatch, real backward, AdamW, bf16. Placements are homogeneous (the encoder on the LLM's first stage), colocated
(encoder replicas in the bubbles of the LLM's pipeline) and non-colocated (a GPU for the encoder). The peer is torch's
own 1F1B pipeline, whose first stage encodes. A step's time is the slowest rank's, with planning, loading and the
optimizer. The prediction is the simulated timeline with the durations of the step before the measured one.

Idle time is that of one more step, as a profile of each GPU saw it. Its parts are those of benchmarks/_idle.py, in
percent of the time from the step's start to the end of its last action on any rank: of what bubbles are shares of too,
so without the optimizer, the report, and the ranks' meeting before the next step. What a rank idled beyond predicted is
its idle share less the bubble predicted for its lane; it is printed for the rank where that is most. Torch's pipeline
has no prediction, and its step is all from zeroing the gradients until the GPUs are done. The profile slows the host,
so ``without_profile`` holds the same kernels against the time of steps without it, the median of three. A process that
was profiled stays slow afterwards, so every placement, transport and peer has processes of its own.

``host_us_per_action`` is how long an action held the host. The host may be about 1,000 launches ahead of the GPU, and
is held in launches beyond; so where the GPU limits the step it is the GPU's time, not what launches cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count, pairwise, product
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks import _torch_pipeline
from benchmarks._idle import idle_figures, idle_without_profile, percent
from benchmarks._profiled import gather_parts, meet, profiled
from benchmarks._vision_language import FULL, LAYOUTS, TINY, RandomSource, Sizes, builders, make_plan, teraflop_of
from hetsched.batch import Batch
from hetsched.graph import make_topology
from hetsched.plan import Plan
from hetsched.runtime.device import peak_memory_bytes
from hetsched.runtime.engine import Engine
from hetsched.runtime.report import StepReport
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.sim.bubble import bubble_fraction, bubbles
from hetsched.sim.measured import measured_costs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Timeline
from hetsched.train.launch import launch

TORCH = "torch 1F1B"


def optimizer_of(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(parameters), lr=1e-5, fused=True)


class PlannedSteps:
    """Training steps of a plan, one batch after the other; calling it does one, with the optimizer's.

    Args:
        plan: the job's plan.
        sizes: of the model and its samples.
        is_compiled: as for ``builders``.
    """

    def __init__(self, plan: Plan, sizes: Sizes, *, is_compiled: bool) -> None:
        self.engine = Engine(plan, builders(sizes, is_compiled=is_compiled))
        self._optimizer = optimizer_of(self.engine.parameters())
        source, size = RandomSource(sizes), plan.microbatches * sizes.num_samples
        self._following = pairwise(Batch.of(source, range(n, n + size)) for n in count(step=size))

    def __call__(self) -> StepReport:
        batch, upcoming = next(self._following)
        report = self.engine.step(batch, upcoming=upcoming)
        self._optimizer.step()
        return report

    def alone(self) -> None:
        """A step that gives the GPU nothing but its actions: no optimizer's, and nothing of the next batch."""
        batch, _ = next(self._following)
        self.engine.step(batch)

    def timed(self) -> tuple[StepReport, Timeline]:
        """A step's report, and its timeline."""
        return self(), self.engine.timeline()


def step_seconds(step: Callable[[], object], args: argparse.Namespace) -> list[float]:
    """Of each step after the first ones, on the slowest rank."""
    seconds = []
    for _ in range(args.warmup + args.steps):
        meet()
        began = time.perf_counter()
        step()
        meet()
        seconds.append(time.perf_counter() - began)
    return seconds[args.warmup :]


def measure_plan(placement: str, transport: str, sizes: Sizes, args: argparse.Namespace) -> dict[str, object]:
    """One placement on one transport: its steps, and one of them as it ran beside its prediction."""
    plan = make_plan(placement, sizes, gpus=args.gpus, microbatches=args.microbatches, transport=transport)
    steps = PlannedSteps(plan, sizes, is_compiled=args.compile)
    seconds = step_seconds(steps, args)
    (_, before), (report, measured) = steps.timed(), steps.timed()
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
        "bubble_percent": percent(bubble_fraction(measured)),
        "predicted_bubble_percent": percent(bubble_fraction(predicted)),
        "host_us_per_action": report.host_us_per_action,
        "runtime_us_per_action": report.runtime_us_per_action,
        "hidden_percent": {of.name: percent(of.hidden) for of in steps.engine.overlap()},
        **(idle_of_plan(steps, predicted) if args.profile else {}),
    }


def idle_of_plan(steps: PlannedSteps, predicted: Timeline) -> dict[str, object]:
    """Where the GPUs' time went in a step more."""
    spans = []
    for _ in range(3):
        meet()
        steps.alone()
        spans.append(steps.engine.timeline().makespan_ns)
    ran, _ = profiled(steps.alone, before=steps)
    timeline = steps.engine.timeline()
    parts = gather_parts(ran, span_ns=timeline.makespan_ns)
    shares = [_bubbles_of_ranks(of, steps.engine.plan) for of in (predicted, timeline)]
    return {
        "profiled_timeline_ms": round(timeline.makespan_ns / 1e6, 2),
        **idle_figures(parts, predicted=shares[0], measured=shares[1]),
        "without_profile": idle_without_profile(parts, span_ns=sorted(spans)[1], predicted=shares[0]),
    }


def _bubbles_of_ranks(timeline: Timeline, plan: Plan) -> list[float]:
    """The share of the step that a rank's lane idled, by rank."""
    _, lanes = make_topology(plan)
    of_lanes = [bubble.total / timeline.makespan_ns for bubble in bubbles(timeline)]
    return [next(of_lanes[lane] for lane, ranks in enumerate(lanes) if r in ranks) for r in range(plan.world_size)]


def measure_torch(sizes: Sizes, args: argparse.Namespace) -> dict[str, object]:
    """The peer's steps."""
    is_on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", dist.get_rank()) if is_on_gpu else torch.device("cpu")
    module, run = _torch_pipeline.make_step(
        builders(sizes, is_compiled=args.compile),
        sizes,
        microbatches=args.microbatches,
        device=device,
        dtype=torch.bfloat16 if is_on_gpu else torch.float32,
    )
    optimizer = optimizer_of(module.parameters())

    def alone() -> None:
        optimizer.zero_grad()
        run()

    def step() -> None:
        alone()
        optimizer.step()

    line: dict[str, object] = {"placement": TORCH, "transport": "nccl" if is_on_gpu else "gloo"}
    line |= figures(step_seconds(step, args), sizes, args)
    if args.profile:
        ran, took_ns = profiled(alone, before=step)
        line |= {"profiled_step_ms": round(took_ns / 1e6, 2), **idle_figures(gather_parts(ran, span_ns=took_ns))}
    return line


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


def work(measure: Callable[..., dict[str, object]], case: tuple[str, ...], args: argparse.Namespace) -> None:
    """One rank in one case."""
    line = measure(*case, replace(TINY if args.tiny else FULL, num_samples=args.samples), args)
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
    parser.add_argument("--no-profile", dest="profile", action="store_false", help="no account of idle time")
    parser.add_argument("--compile", action="store_true", help="torch.compile each layer")
    parser.add_argument("--tiny", action="store_true", help="a model of no use, to try the script; gloo runs on CPUs")
    parser.add_argument("--out", help="folder for the timelines, measured and predicted")
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    if args.gpus < 2 or ("gloo" not in args.transports and torch.cuda.device_count() < args.gpus):
        print("benchmarks/train.py: needs two GPUs or more; nothing was measured", file=sys.stderr)
        return
    args.profile = args.profile and torch.cuda.is_available() and "gloo" not in args.transports
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    setup = {"gpu": gpu, "num_gpus": args.gpus, "torch": torch.__version__, "commit": args.commit}
    work_of_step = {"microbatches": args.microbatches, "samples_per_microbatch": args.samples}
    print(json.dumps({**setup, **work_of_step, "is_compiled": args.compile}), flush=True)
    cases: list[tuple[Callable[..., dict[str, object]], tuple[str, ...]]] = [
        (measure_plan, case) for case in product(args.placements, args.transports)
    ]
    # Each in processes of its own: a profile slows all that its process launches later.
    for measure, case in [*cases, *([(measure_torch, ())] if args.peer else [])]:
        launch(work, measure, case, args, num_ranks=args.gpus, backend=BACKEND if torch.cuda.is_available() else "gloo")


if __name__ == "__main__":
    main()
