"""Attention on one GPU against torch's: SDPA cuDNN and flash, varlen_attn, flex_attention, in the same run.

    python -m benchmarks.attention --json attention.json

Variants take turns on a hot GPU, a few launches each, so that all see the same temperature; with ``--turn-ms 250``
each settles at the clock that its own power draw allows. Medians with 20th and 80th percentiles over all launches.
TFLOP/s count 4 * D * pairs per head forward, 2.5 times that backward, pairs being the (query, key) pairs that the mask
lets through. A backward includes everything after the output's gradient: delta, zeroing, casts. Errors against float64
are measured first, and a case whose errors are too large reports no speed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hetsched.kernels.attention import attend, naive
from hetsched.kernels.attention.backends import Backend
from hetsched.kernels.attention.ranges import packed_ranges
from hetsched.kernels.attention.task import AttentionTask

Launch = Callable[[], Any]
MAX_ERROR = 6e-3
"""Relative error against float64 above which bf16 attention is wrong, not rounded."""


@dataclass(frozen=True, slots=True)
class Case:
    """Packed documents and the shape of the heads."""

    name: str
    lengths: tuple[int, ...]
    num_heads: int = 16
    num_kv_heads: int = 16
    head_dim: int = 128

    @property
    def is_dense(self) -> bool:
        return len(set(self.lengths)) == 1

    @property
    def forward_flops(self) -> float:
        return 4.0 * self.head_dim * self.num_heads * sum(n * (n + 1) / 2 for n in self.lengths)


def log_normal_lengths(total: int, seed: int) -> tuple[int, ...]:
    """Document lengths from a log-normal clipped to 1k..16k, that add up to ``total``."""
    generator = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        length = int(np.clip(generator.lognormal(np.log(4096), 1.0), 1024, 16384))
        lengths.append(min(length, total - sum(lengths)))
    return tuple(lengths)


def cases(total: int) -> dict[str, Case]:
    """The named workloads, of ``total`` tokens each (the mixed one twice as many)."""
    dense = (8192,) * (total // 8192)
    every = [
        Case("4x8k", dense),
        Case("32k", (total,)),
        Case("log-normal 1k-16k", log_normal_lengths(2 * total, 0)),
        Case("64x512", (512,) * (total // 512)),
        Case("4x8k gqa 8:1", dense, num_kv_heads=2),
        Case("4x8k d64", dense, head_dim=64),
    ]
    return {case.name: case for case in every}


class Problem:
    """Inputs of a case on the GPU, in the layouts that the variants take."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        generator = torch.Generator("cuda").manual_seed(seed)
        total, heads, kv_heads = sum(case.lengths), case.num_heads, case.num_kv_heads

        def rows(num_heads: int) -> Tensor:
            shape = (total, num_heads, case.head_dim)
            return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)

        self.q, self.k, self.v, self.dout = rows(heads), rows(kv_heads), rows(kv_heads), rows(heads)
        ends = np.cumsum([0, *case.lengths]).astype(np.int32)
        self.cu_seqlens, self.max_seqlen = torch.from_numpy(ends).cuda(), max(case.lengths)
        self.task = AttentionTask(
            packed_ranges(case.lengths), num_heads=heads, num_kv_heads=kv_heads, device=torch.device("cuda", 0)
        )

    def batched(self, rows: Tensor) -> Tensor:
        """``[batch, heads, length, D]`` of equal documents, with key heads repeated for the query heads."""
        x = rows.repeat_interleave(self.case.num_heads // rows.shape[1], dim=1)
        batch = len(self.case.lengths)
        return x.view(batch, len(x) // batch, *x.shape[1:]).transpose(1, 2)


def own(problem: Problem, backend: Backend, is_deterministic: bool) -> tuple[Launch, Launch]:
    """Forward and backward of this project on a backend."""
    p = problem
    out, lse = attend.forward_step(p.q, p.k, p.v, p.task, backend=backend)

    def forward() -> tuple[Tensor, Tensor]:
        return attend.forward_step(p.q, p.k, p.v, p.task, backend=backend)

    def backward() -> tuple[Tensor, Tensor, Tensor]:
        delta = attend.row_delta(out, p.dout, backend=backend)
        inputs = (p.dout, p.q, p.k, p.v, (lse, delta), p.task)
        return attend.backward_step(*inputs, is_deterministic=is_deterministic, backend=backend)

    return forward, backward


def sdpa(problem: Problem, kind: SDPBackend) -> tuple[Launch, Launch]:
    """SDPA on one of torch's backends; equal documents only."""
    q, k, v = (problem.batched(x).detach().requires_grad_() for x in (problem.q, problem.k, problem.v))
    dout = problem.batched(problem.dout)

    def forward() -> Tensor:
        with torch.no_grad(), sdpa_kernel(kind):
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel(kind):
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
    return forward, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)


def varlen(problem: Problem) -> tuple[Launch, Launch]:
    """torch.nn.attention.varlen.varlen_attn (FlashAttention-2), with key heads repeated."""
    from torch.nn.attention.varlen import varlen_attn

    p, group = problem, problem.case.num_heads // problem.case.num_kv_heads
    repeated = (p.q, p.k.repeat_interleave(group, 1), p.v.repeat_interleave(group, 1))
    q, k, v = (x.detach().requires_grad_() for x in repeated)

    def call() -> Tensor:
        bounds = (p.cu_seqlens, p.cu_seqlens, p.max_seqlen, p.max_seqlen)
        result = varlen_attn(q, k, v, *bounds, window_size=(-1, 0))
        assert isinstance(result, Tensor)
        return result

    def forward() -> Tensor:
        with torch.no_grad():
            return call()

    out = call()
    return forward, lambda: torch.autograd.grad(out, (q, k, v), p.dout, retain_graph=True)


def flex(problem: Problem) -> tuple[Launch, Launch]:
    """flex_attention, compiled, with a causal document mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    p, total = problem, int(problem.cu_seqlens[-1])
    lengths = torch.tensor(p.case.lengths, device="cuda")
    document = torch.repeat_interleave(torch.arange(len(lengths), device="cuda"), lengths)

    def mask(b: Tensor, h: Tensor, q_row: Tensor, k_row: Tensor) -> Tensor:
        return (document[q_row] == document[k_row]) & (q_row >= k_row)

    blocks = create_block_mask(mask, None, None, total, total, device="cuda", _compile=True)
    compiled = torch.compile(flex_attention, dynamic=False)
    q, k, v = (x[None].transpose(1, 2).detach().requires_grad_() for x in (p.q, p.k, p.v))
    dout = p.dout[None].transpose(1, 2)
    is_grouped = p.case.num_heads != p.case.num_kv_heads

    def forward() -> Tensor:
        with torch.no_grad():
            return compiled(q, k, v, block_mask=blocks, enable_gqa=is_grouped)

    out = compiled(q, k, v, block_mask=blocks, enable_gqa=is_grouped)
    return forward, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)


def variants(problem: Problem, with_flex: bool) -> Iterator[tuple[str, Launch, Launch | None]]:
    """(name, forward, backward) of everything that can run the case."""
    fast, slow = own(problem, "hopper", False), own(problem, "hopper", True)
    yield "hopper", *fast
    yield "hopper deterministic", slow[0], slow[1]
    yield "triton", *own(problem, "triton", True)
    yield "varlen_attn", *varlen(problem)
    if problem.case.is_dense:
        yield "sdpa cudnn", *sdpa(problem, SDPBackend.CUDNN_ATTENTION)
        yield "sdpa flash", *sdpa(problem, SDPBackend.FLASH_ATTENTION)
    if with_flex:
        yield "flex_attention", *flex(problem)


def errors(problem: Problem, forward: Launch, backward: Launch) -> dict[str, float]:
    """Relative errors of one group of heads against float64; both launches give ``[T, heads, D]`` tensors."""
    group, p = problem.case.num_heads // problem.case.num_kv_heads, problem
    q, k, v, dout = p.q[:, :group].double(), p.k[:, :1].double(), p.v[:, :1].double(), p.dout[:, :group].double()
    ranges = p.task.ranges
    out, lse = naive.forward(q, k, v, ranges)
    truth = naive.backward(dout, q, k, v, lse, naive.delta(out, dout), ranges=ranges)
    got_out, got_lse = forward()
    gradients = backward()
    result = {"out": _relative(got_out[:, :group], out), "lse": float((got_lse[:group] - lse).abs().max())}
    for name, got, expected in zip(("dq", "dk", "dv"), gradients, truth, strict=True):
        result[name] = _relative(got[:, : expected.shape[1]], expected)
    return result


def _relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def time_in_turns(launches: dict[str, Launch], *, rounds: int, repeats: int, turn_ms: float) -> dict[str, list[float]]:
    """Milliseconds of each launch: every round gives each variant a turn, in shuffled order.

    A turn has ``repeats`` launches, or more until it lasts ``turn_ms``; the first third warms up. The first round is
    dropped.
    """
    times: dict[str, list[float]] = {name: [] for name in launches}
    order, lengths = list(launches), dict.fromkeys(launches, repeats)
    shuffle = random.Random(0).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            events = [(_event(), _event()) for _ in range(lengths[name])]
            for start, end in events:
                start.record()
                launches[name]()
                end.record()
            torch.cuda.synchronize()
            durations = [start.elapsed_time(end) for start, end in events]
            lengths[name] = max(repeats, int(turn_ms / statistics.median(durations)))
            if turn:
                times[name] += durations[len(durations) // 3 :]
    return times


def heat(seconds: float) -> None:
    """Multiply matrices until the GPU runs at the clock that it sustains: a cool one flatters short runs."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            torch.mm(a, a)
        torch.cuda.synchronize()


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Errors and speeds of one case."""
    problem = Problem(case, seed=len(case.lengths))
    result: dict[str, Any] = {"case": case.name, "lengths": case.lengths, "errors": {}, "forward": {}, "backward": {}}
    every = list(variants(problem, options.flex))
    for name, forward, backward in every[:3]:
        assert backward is not None
        result["errors"][name] = errors(problem, forward, backward)
        torch.cuda.empty_cache()
        if not all(error < MAX_ERROR for error in result["errors"][name].values()):
            return result | {"failed": name}
    forwards = {name: forward for name, forward, _ in every if name != "hopper deterministic"}
    backwards = {name: backward for name, _, backward in every if backward is not None}
    heat(3.0)
    for direction, launches, flops in (("forward", forwards, 1.0), ("backward", backwards, 2.5)):
        turns = {"rounds": options.rounds, "repeats": options.repeats, "turn_ms": options.turn_ms}
        for name, times in time_in_turns(launches, **turns).items():
            low, high = np.percentile(times, [20, 80])
            rates = [flops * case.forward_flops / ms / 1e9 for ms in (statistics.median(times), high, low)]
            result[direction][name] = dict(zip(("tflops", "p20", "p80"), (round(r, 1) for r in rates), strict=True))
    return result


def environment() -> dict[str, str]:
    """GPU, versions, commit and date."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(sys.argv),
    }


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    """TFLOP/s as lines of text, and the ratio to cuDNN (dense) or varlen_attn (ragged)."""
    for result in results:
        yield f"{result['case']}: " + (f"FAILED {result['failed']} {result['errors']}" if "failed" in result else "")
        for direction in ("forward", "backward"):
            rates = result[direction]
            peer = rates.get("sdpa cudnn") or rates.get("varlen_attn")
            for name, rate in rates.items():
                ratio = rate["tflops"] / peer["tflops"]
                yield f"  {direction:9}{name:22}{rate['tflops']:7.1f}  [{rate['p20']}..{rate['p80']}]  x{ratio:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--cases", nargs="*", help="names of the cases; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6, help="launches of a turn, at least")
    parser.add_argument("--turn-ms", type=float, default=0.0, help="how long a turn lasts, at least")
    parser.add_argument("--flex", action="store_true", help="time flex_attention too (compiles for a while)")
    options = parser.parse_args()
    results = []
    for name, case in cases(options.tokens).items():
        if not options.cases or name in options.cases:
            results.append(measure(case, options))
            torch.cuda.empty_cache()
            print("\n".join(table(results[-1:])), file=sys.stderr, flush=True)
    report = {"environment": environment(), "results": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    print(json.dumps(report))
    return 1 if any("failed" in result for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
