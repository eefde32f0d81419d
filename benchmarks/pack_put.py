"""Pack-and-put against the copy engine: random runs of rows into a peer's memory, on two GPUs of one host.

    python benchmarks/pack_put.py --mib 64 256 --run-rows 16 256

Both GPUs send at once. The ceiling is the copy engine pushing as many bytes in one copy, timed in the same run. Every
way of sending is checked first with poisoned destinations; a wrong one ends the run before any time is printed.
Bandwidth is per direction and counts each row once.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hetsched.kernels.put import library, naive

BLOCKS = (16, 32, 64, 128)
RUN_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


@dataclass(frozen=True)
class Timing:
    """Median and 20th and 80th percentiles, in milliseconds; the host's own time for one call in microseconds."""

    median: float
    p20: float
    p80: float
    host_us: float


@dataclass(frozen=True)
class Pair:
    """This rank's source and the two ends of its channel: where it writes, and where its peer writes.

    Args:
        source: ``[num_rows, hidden]``.
        inbox, outbox: ``[max_rows, hidden]``, this rank's memory and the peer's.
        arrived, sent: the counters beside them.
        staging: ``[max_rows, hidden]``, for gather and copy.
        ticket: for the kernel.
    """

    source: Tensor
    inbox: Tensor
    outbox: Tensor
    arrived: Tensor
    sent: Tensor
    staging: Tensor
    ticket: Tensor


def make_pair(rank: int, *, max_rows: int, hidden: int) -> Pair:
    """Twice the rows of the largest message, so that runs lie apart; random bits that the peer can make, too."""
    device = torch.device("cuda", rank)
    inbox = symmetric_memory.empty(max_rows, hidden, dtype=torch.bfloat16, device=device)
    arrived = symmetric_memory.empty(1, dtype=torch.int32, device=device)
    arrived.zero_()
    peer = 1 - rank
    assert dist.group.WORLD is not None
    rows = symmetric_memory.rendezvous(inbox, dist.group.WORLD)
    flags = symmetric_memory.rendezvous(arrived, dist.group.WORLD)
    return Pair(
        source=make_source(rank, num_rows=2 * max_rows, hidden=hidden, device=device),
        inbox=inbox,
        outbox=rows.get_buffer(peer, (max_rows, hidden), torch.bfloat16),
        arrived=arrived,
        sent=flags.get_buffer(peer, (1,), torch.int32),
        staging=torch.empty(max_rows, hidden, dtype=torch.bfloat16, device=device),
        ticket=torch.zeros(1, dtype=torch.int32, device=device),
    )


def make_source(rank: int, *, num_rows: int, hidden: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(rank)
    return torch.randn(num_rows, hidden, dtype=torch.bfloat16, device=device, generator=generator)


def make_runs(seed: int, *, num_rows: int, shortest: int, longest: int) -> Tensor:
    """Runs of random length at random places of ``2 * num_rows`` source rows, stored in another order, all in all."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while sum(lengths) < num_rows:
        drawn = int(torch.randint(shortest, longest + 1, (), generator=generator))
        lengths.append(min(drawn, num_rows - sum(lengths)))
    length = torch.tensor(lengths)
    gaps = torch.randint(0, num_rows + 1, (len(lengths),), generator=generator).sort().values
    source_row = gaps + length.cumsum(0) - length
    order = torch.randperm(len(lengths), generator=generator)
    placed = length[order]
    row = torch.empty_like(length)
    row[order] = placed.cumsum(0) - placed
    return torch.stack([source_row, torch.zeros_like(row), row, length], dim=1).contiguous()


def ways(pair: Pair, runs: Tensor) -> dict[str, Callable[[], object]]:
    """Every way of sending these runs; the kernel with each number of blocks."""
    num_rows = int(runs[:, 3].sum())
    to, whole = [pair.outbox], torch.tensor([[0, 0, 0, num_rows]])
    index = torch.empty(num_rows, dtype=torch.int64)
    for source_row, _, row, length in runs.tolist():
        index[row : row + length] = torch.arange(source_row, source_row + length)
    index = index.to(pair.source.device)
    staging = pair.staging[:num_rows]

    def gather_and_copy() -> None:
        torch.index_select(pair.source, 0, index, out=staging)
        library.copy_runs(staging, whole, to)

    def pack_and_put(num_blocks: int) -> Callable[[], None]:
        signal = library.Signal([pair.sent], 0, pair.ticket)
        return lambda: library.pack_and_put(pair.source, runs, to, signal=signal, num_blocks=num_blocks)

    return {
        **{f"pack_and_put_{blocks}": pack_and_put(blocks) for blocks in BLOCKS},
        "gather_and_copy": gather_and_copy,
        "copy_per_run": lambda: library.copy_runs(pair.source, runs, to),
        "batched_copies": lambda: library.copy_runs(pair.source, runs, to, is_batched=True),
    }


def push(pair: Pair, num_rows: int) -> Callable[[], None]:
    """The ceiling: one copy of as many bytes."""
    whole = torch.tensor([[0, 0, 0, num_rows]])
    return lambda: library.copy_runs(pair.source, whole, [pair.outbox])


def check(rank: int, pair: Pair, runs: Tensor, peer_runs: Tensor) -> None:
    """Every way delivers the peer's rows, bit by bit, and touches nothing else."""
    shape = pair.source.shape
    peer_source = make_source(1 - rank, num_rows=shape[0], hidden=shape[1], device=pair.source.device)
    expected = torch.full_like(pair.inbox, float("nan"))
    naive.put_runs(peer_source, peer_runs, [expected])
    for name, send in ways(pair, runs).items():
        pair.inbox.fill_(float("nan"))
        torch.cuda.synchronize()
        dist.barrier()
        send()
        torch.cuda.synchronize()
        dist.barrier()
        if not torch.equal(pair.inbox.view(torch.int16), expected.view(torch.int16)):
            raise SystemExit(f"{name} delivers wrong rows; nothing was timed")


def measure(send: Callable[[], object], *, repeats: int) -> Timing:
    """Times ``send`` on both ranks at once; a kernel that idles first hides the host's launches."""
    times, host = [], []
    for repeat in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda._sleep(8_000_000)  # type: ignore[no-untyped-call]
        start.record()
        began = time.perf_counter()
        send()
        host.append((time.perf_counter() - began) * 1e6)
        end.record()
        torch.cuda.synchronize()
        if repeat >= 3:
            times.append(start.elapsed_time(end))
    of_all = torch.tensor(times, device="cuda")
    dist.all_reduce(of_all, dist.ReduceOp.MAX)
    ordered = sorted(of_all.tolist())
    host_us = sorted(host)[len(host) // 2]
    return Timing(ordered[repeats // 2], ordered[repeats // 5], ordered[repeats * 4 // 5], host_us)


def measure_case(rank: int, pair: Pair, *, num_rows: int, run_rows: tuple[int, int], repeats: int) -> dict[str, object]:
    """Times of the ceiling and of every way, for runs between two lengths."""
    make = {"num_rows": num_rows, "shortest": run_rows[0], "longest": run_rows[1]}
    runs, peer_runs = make_runs(rank, **make), make_runs(1 - rank, **make)
    check(rank, pair, runs, peer_runs)
    num_bytes = num_rows * pair.source.shape[1] * pair.source.element_size()
    ceiling = measure(push(pair, num_rows), repeats=repeats)
    timings = {name: measure(send, repeats=repeats) for name, send in ways(pair, runs).items()}
    again = measure(push(pair, num_rows), repeats=repeats)
    best_push = min(ceiling.median, again.median)
    return {
        "mib": num_bytes / 2**20,
        "run_rows": run_rows,
        "num_runs": len(runs),
        "push_gb_per_s": [round(num_bytes / t.median / 1e6, 1) for t in (ceiling, again)],
        "gb_per_s": {name: round(num_bytes / t.median / 1e6, 1) for name, t in timings.items()},
        "of_push": {name: round(best_push / t.median, 3) for name, t in timings.items()},
        "ms": {name: asdict(t) for name, t in {"push": ceiling, **timings}.items()},
    }


def crossover(cases: list[dict[str, object]]) -> dict[str, int | None]:
    """The shortest runs for which a way without SMs is at least as fast as the best pack-and-put."""
    found: dict[str, int | None] = {}
    for name in ("copy_per_run", "batched_copies"):
        faster = []
        for case in cases:
            rates: dict[str, float] = case["gb_per_s"]  # type: ignore[assignment]
            fused = max(rate for way, rate in rates.items() if way.startswith("pack_and_put"))
            if rates[name] >= fused:
                faster.append(case["run_rows"][0])  # type: ignore[index]
        found[name] = min(faster, default=None)
    return found


def work(rank: int, port: int, args: argparse.Namespace) -> None:
    """One rank of the pair."""
    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, device_id=device)
    row_bytes = 2 * args.hidden
    rows_of = [int(mib * 2**20) // row_bytes for mib in args.mib]
    pair = make_pair(rank, max_rows=max(rows_of) + 64, hidden=args.hidden)
    # The driver takes batches of copies on streams of one's own only.
    torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]

    def show(case: dict[str, object]) -> dict[str, object]:
        if rank == 0:
            print(json.dumps(case), flush=True)
        return case

    show(header(args))
    bounds = (args.run_rows[0], args.run_rows[1])
    for num_rows in rows_of:
        show(measure_case(rank, pair, num_rows=num_rows, run_rows=bounds, repeats=args.repeats))
    lengths = [
        show(measure_case(rank, pair, num_rows=min(rows_of), run_rows=(rows, rows), repeats=args.repeats))
        for rows in RUN_ROWS
    ]
    show({"crossover_run_rows": crossover(lengths), "mib": min(args.mib)})
    dist.barrier()
    dist.destroy_process_group()


def header(args: argparse.Namespace) -> dict[str, object]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": args.commit,
        "hidden": args.hidden,
        "dtype": "bfloat16",
        "directions": "both at once",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, nargs="+", default=[16, 64, 256], help="bytes of a message")
    parser.add_argument("--run-rows", type=int, nargs=2, default=[16, 256], help="shortest and longest run")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    reason = library.missing() or ("needs two GPUs" if torch.cuda.device_count() < 2 else None)
    if reason is not None:
        print(f"benchmarks/pack_put.py: {reason}; nothing was measured", file=sys.stderr)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, args), nprocs=2)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
