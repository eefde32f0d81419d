"""Rows over a boundary between two layouts: each transport, and what others do, on two GPUs or more of one host.

    PYTHONPATH=. python benchmarks/boundary.py --suite 4gpu
    PYTHONPATH=. python benchmarks/boundary.py --layouts dp2,tp2 tp2,dp2sp dp1/dp1 --mib 16 256

Layouts and suites are those of benchmarks/_boundary_cases.py. Every way is checked first, and a wrong one ends the run
before any time is printed. Times are those of the slowest rank, from rows in a maker's memory to rows in their places
at all users. GB/s count the bytes that must cross at the busiest rank; the ceiling is the copy engine pushing as many
to a peer, all GPUs at once, in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from benchmarks._boundary_cases import SUITES, Spec, items, make_case
from hetsched.kernels.put import library
from hetsched.layout.rank_share import rank_share
from hetsched.lower.rooms import Rooms
from hetsched.runtime.exchange import Channel, Exchange, StepSetup, Transfer, Wire
from hetsched.runtime.transport.links import make_links
from hetsched.runtime.transport.nccl import BACKEND, NcclCarrier
from hetsched.runtime.transport.peer import PeerCarrier
from hetsched.runtime.transport.streamed import StreamedTransport
from hetsched.train.launch import launch

TIMEOUT = timedelta(seconds=20)
Way = Callable[[], Tensor]


class Ways:
    """Every way of taking one case's rows to their places; ``end`` is recorded when they are there."""

    end: torch.cuda.Event

    def __init__(self, spec: Spec, *, hidden: int, transports: Sequence[str]) -> None:
        self.spec, self.case, self.rank, self.num_ranks = spec, make_case(spec), dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda", self.rank)
        self.together = torch.zeros(1, device=self.device)
        generator = torch.Generator(self.device).manual_seed(1)
        case = self.case
        every = torch.randn(case.num_rows, hidden, dtype=torch.bfloat16, device=self.device, generator=generator)
        self.rows = every[case.rows_of(case.makers, self.rank).to(self.device)]
        self.wanted = case.used[case.rows_of(case.users, self.rank)].to(self.device)
        self.expected = every[self.wanted]
        self.channel = Channel(0, hidden, torch.bfloat16, str(spec))
        self.ways: dict[str, Way] = {name: self._exchange(name) for name in transports}
        self.ways |= {"send and broadcast": self._broadcast(), "all-gather and slice": self._gather()}

    def _exchange(self, transport: str) -> Way:
        pairs = sorted({(s.src_rank, s.dst_rank) for s in self.case.route if s.src_rank != s.dst_rank})
        wires = [Wire(self.channel.tag, source, destination, str(self.spec)) for source, destination in pairs]
        links = make_links(wires, self._lanes())
        nccl = transport == "nccl"
        carrier = NcclCarrier(links, device=self.device) if nccl else PeerCarrier(links, device=self.device)
        streamed = StreamedTransport(carrier, links, device=self.device, timeout=TIMEOUT)
        exchange, transfer = Exchange(self.rank, streamed, device=self.device), Transfer(self.channel, 0)
        columns = [(s.src_rank, s.src_row, s.dst_rank, s.dst_row, s.num_rows) for s in self.case.route]
        share = rank_share(np.array(columns, np.int64), self.rank, num_rows=len(self.wanted))
        once = Rooms.by([(0, False), (0, True)])
        setup = StepSetup(
            largest_bytes={0: self.case.num_rows * self.channel.row_bytes},
            rooms={(0, rank): once for rank in range(self.num_ranks)},
        )

        def run() -> Tensor:
            with exchange.step(setup):
                exchange.send(transfer, share, self.rows)
                arrived = exchange.receive(transfer, share).wait()
                torch.cuda.current_stream().record_event(self.end)
                exchange.give_back(transfer)
                exchange.flush()
            return arrived

        return run

    def _lanes(self) -> list[tuple[int, ...]]:
        """Makers and users on GPUs of their own are two lanes, otherwise all are one."""
        half = 0 if self.spec.is_colocated else self.spec.num_ranks // 2
        return [lane for lane in (tuple(range(half)), tuple(range(half, self.num_ranks))) if lane]

    def _shares(self) -> tuple[list[int], Tensor]:
        """One rank for each part of the rows, and for each produced row its place in the parts laid end to end."""
        first_of: dict[tuple[int, ...], int] = {}
        for rank in range(self.num_ranks):
            rows = self.case.rows_of(self.case.makers, rank)
            if len(rows):
                first_of.setdefault(tuple(rows.tolist()), rank)
        place = torch.empty(self.case.num_rows, dtype=torch.int64)
        place[torch.tensor([row for rows in first_of for row in rows])] = torch.arange(self.case.num_rows)
        return list(first_of.values()), place

    def _broadcast(self) -> Way:
        """As bridges do: the parts are sent to one consumer, which broadcasts all to the others; each takes its own."""
        owners, place = self._shares()
        consumers = sorted({rank for rank, *_ in self.case.users})
        group, leader = dist.new_group(consumers), consumers[0]
        index = place.to(self.device)[self.wanted]
        whole = torch.empty(self.case.num_rows, self.channel.hidden, dtype=torch.bfloat16, device=self.device)
        parts = torch.split(whole, [len(self.case.rows_of(self.case.makers, owner)) for owner in owners])

        def run() -> Tensor:
            ops = []
            for owner, part in zip(owners, parts, strict=True):
                if self.rank == owner == leader:
                    part.copy_(self.rows)
                elif self.rank == owner:
                    ops.append(dist.P2POp(dist.isend, self.rows, leader))
                elif self.rank == leader:
                    ops.append(dist.P2POp(dist.irecv, part, owner))
            for work in dist.batch_isend_irecv(ops) if ops else ():
                work.wait()
            if self.rank in consumers:
                dist.broadcast(whole, leader, group=group)
            found = whole[index]
            torch.cuda.current_stream().record_event(self.end)
            return found

        return run

    def _gather(self) -> Way:
        """Every rank gets every row, and takes its own."""
        owners, place = self._shares()
        size = max(len(self.case.rows_of(self.case.makers, owner)) for owner in owners)
        mine = torch.zeros(size, self.channel.hidden, dtype=torch.bfloat16, device=self.device)
        whole = torch.empty(self.num_ranks * size, self.channel.hidden, dtype=torch.bfloat16, device=self.device)
        counts = torch.tensor([len(self.case.rows_of(self.case.makers, owner)) for owner in owners])
        part = torch.searchsorted(counts.cumsum(0), place, right=True)
        padded = torch.tensor(owners)[part] * size + place - (counts.cumsum(0) - counts)[part]
        index = padded.to(self.device)[self.wanted]

        def run() -> Tensor:
            mine[: len(self.rows)].copy_(self.rows)
            dist.all_gather_into_tensor(whole, mine)
            found = whole[index]
            torch.cuda.current_stream().record_event(self.end)
            return found

        return run

    def check(self) -> None:
        """Every way gives every rank its rows, bit by bit."""
        for name, way in self.ways.items():
            self.end = torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in range(3):
                found = way()
                torch.cuda.synchronize()
                wrong = torch.tensor([int(not torch.equal(found, self.expected))])
                dist.all_reduce(wrong)
                if wrong.item():
                    raise SystemExit(f"{self.spec!s}: {name} delivers wrong rows; nothing was timed")

    def measure(self, repeats: int) -> dict[str, dict[str, float]]:
        """Milliseconds of each way, which take turns: median, 20th and 80th percentile over the slowest ranks."""
        times: dict[str, list[float]] = {name: [] for name in self.ways}
        for _ in range(repeats):
            for name, way in self.ways.items():
                times[name].append(self._time(way))
        return {name: percentiles(self._slowest(of)) for name, of in times.items()}

    def _time(self, way: Way) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        dist.all_reduce(torch.zeros(1))
        # The devices idle while the hosts enqueue, so that no launch is timed, and then start at once.
        torch.cuda._sleep(4_000_000)  # type: ignore[no-untyped-call]
        dist.all_reduce(self.together)
        start.record()
        way()
        torch.cuda.synchronize()
        return float(start.elapsed_time(self.end))

    @staticmethod
    def _slowest(times: list[float]) -> list[float]:
        of_all = torch.tensor(times)
        dist.all_reduce(of_all, dist.ReduceOp.MAX)
        return of_all.tolist()


def percentiles(times: Sequence[float]) -> dict[str, float]:
    p20, median, p80 = np.percentile(np.array(times), (20, 50, 80))
    return {"median_ms": round(median, 4), "p20_ms": round(p20, 4), "p80_ms": round(p80, 4)}


def push_gb_per_s(num_bytes: int, repeats: int) -> float:
    """The copy engine's rate: every GPU pushes so many bytes to the next one at once."""
    rank, size = dist.get_rank(), dist.get_world_size()
    inbox = symmetric_memory.empty(num_bytes // 2048, 1024, dtype=torch.bfloat16, device=torch.device("cuda", rank))
    assert dist.group.WORLD is not None
    outbox = symmetric_memory.rendezvous(inbox, dist.group.WORLD).get_buffer(
        (rank + 1) % size, inbox.shape, inbox.dtype
    )
    rows, whole = torch.randn_like(inbox), torch.tensor([[0, 0, 0, inbox.shape[0]]])
    times = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        dist.all_reduce(torch.zeros(1))
        torch.cuda._sleep(4_000_000)  # type: ignore[no-untyped-call]
        start.record()
        library.copy_runs(rows, whole, [outbox])
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    dist.all_reduce(torch.zeros(1))
    return num_bytes / float(np.median(Ways._slowest(times[2:]))) / 1e6


def measure(spec: Spec, args: argparse.Namespace) -> dict[str, object]:
    """Times of one boundary by every way, and of the ceiling before and after."""
    ways = Ways(spec, hidden=args.hidden, transports=args.transports)
    ways.check()
    row_bytes = 2 * args.hidden
    moved, num_bytes = (rows * row_bytes for rows in (ways.case.busiest_rows(), ways.case.num_rows))
    pushed = moved or num_bytes
    before = push_gb_per_s(pushed, args.repeats)
    times = ways.measure(args.repeats)
    push = max(before, push_gb_per_s(pushed, args.repeats))
    rates = {name: moved / of["median_ms"] / 1e6 for name, of in times.items()}
    return {
        "boundary": str(spec),
        "items": len(spec.lengths),
        "mib": round(num_bytes / 2**20, 2),
        "num_segments": len(ways.case.route),
        "busiest_rank_mib": round(moved / 2**20, 2),
        "push_gb_per_s": round(push, 1),
        "gb_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "of_push": {name: round(rate / push, 3) for name, rate in rates.items()},
        "ms": times,
    }


def specs_of(args: argparse.Namespace) -> list[Spec]:
    """What is asked for: suites, and layouts in every size."""
    row_counts = [int(mib * 2**20) // (2 * args.hidden) for mib in args.mib]
    return [
        *(spec for name in args.suite for spec in SUITES[name]),
        *(Spec(layouts, items(rows, *args.item_rows)) for layouts in args.layouts for rows in row_counts),
    ]


def work(args: argparse.Namespace) -> None:
    """One rank."""
    rank = dist.get_rank()
    torch.cuda.set_device(rank)
    # The sleep's kernel is loaded, and all ranks connected, before anything waits for a peer.
    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
    dist.all_reduce(torch.zeros(1, device="cuda"))
    about = {"gpu": torch.cuda.get_device_name(), "num_gpus": args.gpus, "torch": torch.__version__}
    show(about | {"commit": args.commit, "hidden": args.hidden})
    for spec in specs_of(args):
        show(measure(spec, args))


def show(line: dict[str, object]) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", default=[], choices=SUITES, help="a set of boundaries, by GPUs")
    parser.add_argument("--layouts", nargs="+", default=[])
    parser.add_argument("--mib", type=float, nargs="+", default=[1, 16, 256], help="bytes of all rows")
    parser.add_argument("--transports", nargs="+", default=["nccl", "peer"], choices=["nccl", "peer"])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--item-rows", type=int, nargs=2, default=[64, 1024], help="shortest and longest item")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    if not args.suite and not args.layouts:
        args.suite = ["4gpu" if args.gpus >= 4 else "2gpu"]
    needed = max(spec.num_ranks for spec in specs_of(args))
    reason = library.missing() or (f"needs {needed} GPUs, here are {args.gpus}" if args.gpus < needed else None)
    if reason is not None:
        print(f"benchmarks/boundary.py: {reason}; nothing was measured", file=sys.stderr)
        return
    args.gpus = needed
    launch(work, args, num_ranks=args.gpus, backend=BACKEND)


if __name__ == "__main__":
    main()
