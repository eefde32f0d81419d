"""Context-parallel attention on all GPUs of a host against torch's context_parallel with cuDNN, in the same run.

    python benchmarks/context_parallel.py --json context.json --tokens 32768 131072

Variants take turns in shuffled rounds on hot GPUs; a time is that of the slowest rank, and ratios are of one round.
``compute only`` is one launch of the same kernel with all keys and values already there; ``steps only`` are the ring's
launches without its messages. ``ring, any order`` lets the backward add up in any order. torch has one document at a
time; mixed documents are compared with one GPU that has all of them: ``one GPU`` with the same kernels, ``one GPU,
varlen_attn`` with torch's. All results, torch's included, are first checked against one GPU's; a case that fails
reports no speed. TFLOP/s per GPU count pairs that the mask lets through; host microseconds are those that enqueuing a
launch takes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from benchmarks.attention import MAX_ERROR, Case, environment, heat
from hetsched.kernels.attention import attend
from hetsched.kernels.attention.ranges import KeyRanges, Span, packed_ranges
from hetsched.kernels.attention.task import AttentionTask
from hetsched.layout.dispatch import plan_tokens
from hetsched.layout.tokens import Group, spread_zigzag, tokens_of
from hetsched.layout.ways import Way
from hetsched.parallel import ring
from hetsched.parallel.context import ContextTask, context_attention
from hetsched.parallel.pull import where_possible

Launch = Callable[[], Any]
HEAD_DIM = 128
ONE_GPU = "one GPU"


def cases(tokens: list[int]) -> list[Case]:
    """One document, and log-normal documents of 1k to 16k; dense heads and 8:1."""
    result = []
    for total in tokens:
        name = f"{total // 1024}k"
        result += [Case(name, (total,)), Case(f"{name} GQA 8:1", (total,), num_kv_heads=2)]
        generator, lengths = np.random.default_rng(0), list[int]()
        while sum(lengths) < total:
            length = int(np.clip(generator.lognormal(np.log(4096), 0.8), 1024, 16384))
            lengths.append(min(length, total - sum(lengths)))
        result.append(Case(f"{name} mixed", tuple(lengths)))
    return result


class Problem:
    """A case's inputs on this rank, and the whole of them for checks."""

    def __init__(self, case: Case, rank: int, cp: int) -> None:
        self.case, self.rank, self.cp = case, rank, cp
        self.cu_seqlens = list(itertools.accumulate(case.lengths, initial=0))
        self.token_map = plan_tokens(self.cu_seqlens, cp=cp, quadratic=1, linear=8192)
        self.tokens = tokens_of(self.token_map, rank)
        generator = torch.Generator("cuda").manual_seed(len(case.lengths))

        def rows(num_heads: int) -> Tensor:
            shape = (self.cu_seqlens[-1], num_heads, HEAD_DIM)
            return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)

        kv_heads = case.num_kv_heads
        self.whole = (rows(case.num_heads), rows(kv_heads), rows(kv_heads), rows(case.num_heads))
        index = torch.from_numpy(self.tokens).cuda()
        q, k, v, dout = (x[index] for x in self.whole)
        self.leaves, self.dout = tuple(x.requires_grad_() for x in (q, k, v)), dout
        self.heads: dict[str, Any] = {
            "num_heads": case.num_heads,
            "num_kv_heads": kv_heads,
            "device": torch.device("cuda", rank),
        }

    @property
    def has_peer(self) -> bool:
        """Whether torch's context_parallel has the case, with the same rows on every rank."""
        is_alike = np.array_equal(self.token_map, spread_zigzag(self.cu_seqlens[-1], Group(self.cp)))
        return len(self.case.lengths) == 1 and self.case.num_heads == self.case.num_kv_heads and is_alike

    def task(self, forced: Way | None) -> ContextTask:
        task = ContextTask(self.cu_seqlens, self.token_map, rank=self.rank, cp=self.cp, **self.heads)
        assert dist.group.WORLD is not None
        task = where_possible(task, group=dist.group.WORLD, like=self.dout, head_dim=HEAD_DIM)
        return replace(task, forced=forced, forced_back="pull" if forced == "pull" else None)

    def all_keys(self) -> AttentionTask:
        """Own queries over all keys, which are all here."""
        starts = np.asarray(self.cu_seqlens)
        document = np.searchsorted(starts, self.tokens, side="right") - 1
        hi = (self.tokens - starts[document] + 1).astype(np.int32)
        spans = []
        for d in np.unique(document).tolist():
            rows = np.flatnonzero(document == d)
            spans.append(Span(int(rows[0]), len(rows), self.cu_seqlens[d], self.case.lengths[d]))
        size = (len(self.tokens), self.cu_seqlens[-1])
        return AttentionTask(KeyRanges(tuple(spans), hi * 0, hi, "ranges", *size), **self.heads)


def in_group(
    problem: Problem, way: Way, group: dist.ProcessGroup, *, is_deterministic: bool = True
) -> tuple[Launch, Launch]:
    """Forward and backward as a model calls them."""
    task, (q, k, v) = problem.task(way), problem.leaves

    def forward() -> Tensor:
        with torch.no_grad():
            return context_attention(q, k, v, task, group=group)

    out = context_attention(q, k, v, task, group=group, is_deterministic=is_deterministic)
    return forward, lambda: torch.autograd.grad(out, (q, k, v), problem.dout, retain_graph=True)


def compute_only(problem: Problem) -> tuple[Launch, Launch]:
    """One launch over keys that are all here."""
    task, q = problem.all_keys(), problem.leaves[0].detach()
    _, k, v, _ = problem.whole
    out, lse = attend.forward_step(q, k, v, task)

    def backward() -> Any:
        statistics = (lse, attend.row_delta(out, problem.dout))
        return attend.backward_step(problem.dout, q, k, v, statistics, task)

    return lambda: attend.forward_step(q, k, v, task), backward


def one_gpu(problem: Problem) -> dict[str, tuple[Launch, Launch]]:
    """All documents on every GPU, with these kernels and with torch's."""
    q, k, v = (x.detach().requires_grad_() for x in problem.whole[:3])
    task = AttentionTask(packed_ranges(problem.case.lengths), **problem.heads)
    bounds = torch.tensor(problem.cu_seqlens, dtype=torch.int32, device="cuda")
    longest = max(problem.case.lengths)

    def torchs_own() -> Tensor:
        result = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0))
        assert isinstance(result, Tensor)
        return result

    def variant(call: Callable[[], Tensor]) -> tuple[Launch, Launch]:
        def forward() -> Tensor:
            with torch.no_grad():
                return call()

        out = call()
        return forward, lambda: torch.autograd.grad(out, (q, k, v), problem.whole[3], retain_graph=True)

    own = variant(lambda: attend.attend(q, k, v, task)[0])
    return {ONE_GPU: own, f"{ONE_GPU}, varlen_attn": variant(torchs_own)}


def steps_only(problem: Problem) -> Launch:
    """The ring's forward with messages that arrived long ago."""
    task, (q, k, v) = problem.task("ring"), (x.detach() for x in problem.leaves)
    stored = [torch.stack((k, v))] + [k.new_zeros(2, step.num_rows, *k.shape[1:]).normal_() for step in task.steps[1:]]

    def forward() -> Tensor:
        carry = ring.nothing_seen(q)
        for step, kv in zip(task.steps, stored, strict=True):
            carry = attend.forward_step(q, kv[0], kv[1], step.attention, carry=carry)
        return carry[0].to(q.dtype)

    return forward


@contextlib.contextmanager
def torchs(problem: Problem) -> Iterator[dict[str, tuple[Launch, Launch]]]:
    """torch's context_parallel with cuDNN, both ways to rotate; it splits one document zigzag."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import set_rotate_method

    mesh = init_device_mesh("cuda", (problem.cp,), mesh_dim_names=("cp",))
    q, k, v = (x[None].transpose(1, 2).detach().contiguous().requires_grad_() for x in problem.leaves)
    dout = problem.dout[None].transpose(1, 2).contiguous()
    buffer = torch.zeros(1, 1, problem.cu_seqlens[-1], 1, device="cuda")

    def attention() -> Tensor:
        # looked up in every call: torch puts its own in this place for as long as context_parallel is entered
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def variant(method: str) -> tuple[Launch, Launch]:
        def forward() -> Tensor:
            set_rotate_method(method)
            with torch.no_grad():
                return attention()[0].transpose(0, 1)

        set_rotate_method(method)
        out = attention()

        def backward() -> Any:
            set_rotate_method(method)
            gradients = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
            return tuple(x[0].transpose(0, 1) for x in gradients)

        return forward, backward

    with context_parallel(mesh, buffers=[buffer], buffer_seq_dims=[2]), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        yield {f"torch {method}": variant(method) for method in ("allgather", "alltoall")}


def errors(problem: Problem, variants: dict[str, tuple[Launch, Launch]]) -> dict[str, float]:
    """The largest relative difference from one GPU, over output and gradients, of all that communicates."""
    q, k, v = (x.clone().requires_grad_() for x in problem.whole[:3])
    task = AttentionTask(packed_ranges(problem.case.lengths), **problem.heads)
    out, _ = attend.attend(q, k, v, task)
    gradients = torch.autograd.grad(out, (q, k, v), problem.whole[3])
    index = torch.from_numpy(problem.tokens).cuda()
    result: dict[str, float] = {}
    for name, (forward, backward) in variants.items():
        if name != "compute only" and not name.startswith(ONE_GPU):
            pairs = zip((forward(), *backward()), (out.detach(), *gradients), strict=True)
            result[name] = slowest([max(relative(mine, whole[index]) for mine, whole in pairs)])[0]
    return result


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30))


def slowest(values: list[float]) -> list[float]:
    """Each value's maximum over ranks."""
    tensor = torch.tensor(values, dtype=torch.float64, device="cuda")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def time_in_rounds(launches: dict[str, Launch], *, rounds: int, turn_ms: float) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds a launch, and of the host to enqueue it, a round: the slowest rank's. The first round is dropped."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in launches}
    order, repeats = list(launches), dict.fromkeys(launches, 2)
    for number in range(rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            launches[name]()
            torch.cuda.synchronize()
            dist.barrier()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]
            start.record()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                launches[name]()
            host_ms = (time.perf_counter() - begin) * 1e3
            end.record()
            torch.cuda.synchronize()
            duration, host_ms = slowest([x / repeats[name] for x in (start.elapsed_time(end), host_ms)])
            repeats[name] = max(2, min(20, int(turn_ms / duration)))
            if number:
                times[name].append((duration, host_ms))
    return times


def rates(times: dict[str, list[tuple[float, float]]], flops: float, cp: int) -> dict[str, Any]:
    """TFLOP/s per GPU, and the ratio to ``compute only`` of the same round, with 20th and 80th percentiles."""
    result, reference = {}, np.array(times["compute only"])[:, 0]
    for name, values in times.items():
        # one GPU does the work of all
        durations, host_ms = np.array(values).T / ([[cp], [1]] if name.startswith(ONE_GPU) else 1)
        result[name] = {
            "tflops": round(flops / float(np.median(durations)) / 1e9, 1),
            "of_compute_only": np.percentile(reference / durations, [50, 20, 80]).round(3).tolist(),
            "host_us": round(float(np.median(host_ms)) * 1e3),
        }
    return result


def measure(case: Case, rank: int, cp: int, options: argparse.Namespace) -> dict[str, Any]:
    """Errors and speeds of one case."""
    problem, group = Problem(case, rank, cp), dist.group.WORLD
    assert group is not None
    variants = {"compute only": compute_only(problem), "ring": in_group(problem, "ring", group)}
    variants["ring, any order"] = in_group(problem, "ring", group, is_deterministic=False)
    if problem.task(None).heads_of_part:
        variants["pull"] = in_group(problem, "pull", group)
    if case.num_kv_heads % cp == 0:
        variants["ulysses"] = in_group(problem, "ulysses", group)
    if len(case.lengths) > 1:
        variants |= one_gpu(problem)
    chosen = [problem.task(None).way, problem.task(None).way_back]
    result: dict[str, Any] = {"case": case.name, "lengths": case.lengths, "chosen": chosen}
    with contextlib.ExitStack() as stack:
        peers = stack.enter_context(torchs(problem)) if problem.has_peer else {}
        variants |= peers
        result["errors"] = errors(problem, variants)
        # torch adds up steps in 16 bits
        limits = {name: 4 * MAX_ERROR if name in peers else MAX_ERROR for name in variants}
        if not all(error < limits[name] for name, error in result["errors"].items()):
            return result | {"failed": True}
        forwards = {name: forward for name, (forward, _) in variants.items() if name != "ring, any order"}
        forwards["steps only"] = steps_only(problem)
        backwards = {name: backward for name, (_, backward) in variants.items()}
        heat(2.0)
        for direction, launches, factor in (("forward", forwards, 1.0), ("backward", backwards, 2.5)):
            times = time_in_rounds(launches, rounds=options.rounds, turn_ms=options.turn_ms)
            result[direction] = rates(times, factor * case.forward_flops / cp, cp)
    return result


def table(result: dict[str, Any]) -> Iterator[str]:
    chosen = " and ".join(result["chosen"])
    yield f"{result['case']}, chosen {chosen}: errors {result['errors']}" + (" FAILED" if "failed" in result else "")
    for direction in ("forward", "backward"):
        for name, rate in result.get(direction, {}).items():
            middle, low, high = rate["of_compute_only"]
            ratio = f"{middle:.3f} [{low:.3f}..{high:.3f}] of compute only"
            yield f"  {direction:9}{name:22}{rate['tflops']:7.1f}  {ratio}, host {rate['host_us']} us"


def work(rank: int, cp: int, port: int, options: argparse.Namespace) -> None:
    torch.cuda.set_device(rank)
    device, address = torch.device("cuda", rank), f"tcp://127.0.0.1:{port}"
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=cp, device_id=device)
    results = []
    for case in (case for case in cases(options.tokens) if options.only in case.name):
        results.append(measure(case, rank, cp, options))
        torch.cuda.empty_cache()
        if rank == 0:
            print("\n".join(table(results[-1])), file=sys.stderr, flush=True)
    if rank == 0:
        report = json.dumps({"environment": environment() | {"gpus": str(cp)}, "results": results}, indent=2)
        print(report)
        if options.json:
            options.json.write_text(report)
    dist.destroy_process_group()
    if any("failed" in result for result in results):
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32768, 131072], help="tokens of all ranks together")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="only cases whose name has this in it")
    parser.add_argument("--turn-ms", type=float, default=40.0, help="how long a variant's turn lasts, at least")
    options = parser.parse_args()
    cp = torch.cuda.device_count()
    if cp < 2:
        print("benchmarks/context_parallel.py: needs two GPUs; nothing was measured", file=sys.stderr)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(cp, port, options), nprocs=cp)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
