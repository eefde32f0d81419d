"""Rows over a boundary between two layouts: each transport, and what others do, on two GPUs or more of one host.

    python benchmarks/boundary.py --layouts dp2,tp2 tp2,dp2 dp1/dp1 --mib 16 256 --transports nccl peer

A layout is written as producer and consumer, `dp2,cp2` on the same GPUs and `dp1/dp1` on GPUs of their own: dp splits
the rows, cp splits each part in zigzag, tp repeats them. Items have random lengths and go to random positions. Every
way is checked first, and a wrong one ends the run before any time is printed. Times are those of the slowest rank,
from rows in a producer's memory to rows in their places at all consumers. GB/s count the bytes that must cross at the
busiest rank; the ceiling is the copy engine pushing to a peer, all GPUs at once, in the same run.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from hetsched.kernels.put import library
from hetsched.layout.routes import Segment, forward_route
from hetsched.layout.tokens import Group, spread_zigzag
from hetsched.runtime.exchange import Channel, Exchange, StepSetup, Transfer, Wire
from hetsched.runtime.transport.links import make_links
from hetsched.runtime.transport.nccl import BACKEND, NcclCarrier
from hetsched.runtime.transport.peer import PeerCarrier
from hetsched.runtime.transport.streamed import StreamedTransport
from hetsched.train.launch import launch

TIMEOUT = timedelta(seconds=20)
Way = Callable[[], Tensor]
Holder = tuple[int, int, int, int]
"""Rank, its local row, the first row that it holds there, how many."""


@dataclass(frozen=True)
class Case:
    """One boundary.

    Args:
        name: as given.
        num_rows: produced and used, each once.
        route: who copies what to whom.
        producers, consumers: who holds which rows.
        used: the produced row of each position.
    """

    name: str
    num_rows: int
    route: tuple[Segment, ...]
    producers: tuple[Holder, ...]
    consumers: tuple[Holder, ...]
    used: Tensor

    def rows_of(self, holders: Sequence[Holder], rank: int) -> Tensor:
        """The rows that a rank holds, in the order of its memory."""
        mine = sorted((row, start, count) for of, row, start, count in holders if of == rank)
        return torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(s, s + n) for _, s, n in mine)])

    def busiest_rows(self) -> int:
        """The most rows that cross into or out of one rank."""
        crossing = [s for s in self.route if s.src_rank != s.dst_rank]
        ranks = {rank for s in crossing for rank in (s.src_rank, s.dst_rank)}
        ways = ([s for s in crossing if r == end(s)] for r in ranks for end in (_source, _destination))
        return max((sum(s.num_rows for s in of) for of in ways), default=0)


def _source(s: Segment) -> int:
    return s.src_rank


def _destination(s: Segment) -> int:
    return s.dst_rank


def holders_of(layout: str, first: int, num_rows: int) -> list[Holder]:
    """Who holds which rows in a layout such as dp2tp2, its ranks counted from ``first``, tp fastest."""
    sizes = {"dp": 1, "cp": 1, "tp": 1} | {axis: int(n) for axis, n in re.findall(r"(dp|cp|tp)(\d+)", layout)}
    holders = []
    for replica in range(sizes["dp"]):
        begin, end = (num_rows * r // sizes["dp"] for r in (replica, replica + 1))
        for part, row, start, count in spread_zigzag(end - begin, Group(cp=sizes["cp"])).tolist():
            for tp in range(sizes["tp"]):
                rank = first + (replica * sizes["cp"] + part) * sizes["tp"] + tp
                holders.append((rank, row, begin + start, count))
    return holders


def make_case(name: str, *, num_rows: int, num_ranks: int, item_rows: tuple[int, int]) -> Case:
    """The boundary between the two layouts of ``name``, with items in random order."""
    random = np.random.default_rng(0)
    producer, consumer = re.split("[,/]", name)
    cuts = np.cumsum(random.integers(item_rows[0], item_rows[1] + 1, num_rows // item_rows[0]))
    starts = np.concatenate(([0], cuts[cuts < num_rows]))
    lengths = np.diff(np.concatenate((starts, [num_rows])))
    order = random.permutation(len(starts))
    positions = np.concatenate(([0], np.cumsum(lengths[order])[:-1]))
    uses = np.stack([positions, starts[order], lengths[order]], axis=1)
    producers = holders_of(producer, 0, num_rows)
    consumers = holders_of(consumer, num_ranks // 2 if "/" in name else 0, num_rows)
    if max(rank for rank, *_ in producers + consumers) >= num_ranks:
        raise SystemExit(f"layout {name} needs more than {num_ranks} GPUs")
    used = torch.cat([torch.arange(start, start + count) for _, start, count in uses.tolist()])
    return Case(name, num_rows, forward_route(uses, producers, consumers), tuple(producers), tuple(consumers), used)


def lanes_of(case: Case, num_ranks: int) -> list[tuple[int, ...]]:
    """Producers and consumers of their own GPUs are two lanes, otherwise all are one."""
    half = num_ranks // 2 if "/" in case.name else 0
    return [lane for lane in (tuple(range(half)), tuple(range(half, num_ranks))) if lane]


class Ways:
    """Every way of taking one case's rows to their places; ``end`` is recorded when they are there."""

    end: torch.cuda.Event

    def __init__(self, case: Case, *, hidden: int, transports: Sequence[str]) -> None:
        self.case, self.rank, self.num_ranks = case, dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda", self.rank)
        self.together = torch.zeros(1, device=self.device)
        generator = torch.Generator(self.device).manual_seed(1)
        every = torch.randn(case.num_rows, hidden, dtype=torch.bfloat16, device=self.device, generator=generator)
        self.rows = every[case.rows_of(case.producers, self.rank).to(self.device)]
        self.wanted = case.used[case.rows_of(case.consumers, self.rank)].to(self.device)
        self.expected = every[self.wanted]
        self.channel = Channel(0, hidden, torch.bfloat16, case.name)
        self.ways: dict[str, Way] = {name: self._exchange(name) for name in transports}
        self.ways |= {"send and broadcast": self._broadcast(), "all-gather and slice": self._gather()}

    def _exchange(self, transport: str) -> Way:
        pairs = sorted({(s.src_rank, s.dst_rank) for s in self.case.route if s.src_rank != s.dst_rank})
        wires = [Wire(self.channel.tag, source, destination, self.case.name) for source, destination in pairs]
        links = make_links(wires, lanes_of(self.case, self.num_ranks))
        nccl = transport == "nccl"
        carrier = NcclCarrier(links, timeout=TIMEOUT) if nccl else PeerCarrier(links, device=self.device)
        streamed = StreamedTransport(carrier, links, device=self.device, timeout=TIMEOUT)
        exchange, transfer = Exchange(self.rank, streamed, device=self.device), Transfer(self.channel, 0)
        largest = max(
            (sum(s.num_rows for s in self.case.route if (s.src_rank, s.dst_rank) == p) for p in pairs), default=0
        )
        setup = StepSetup(may_load_kernels=False, largest_bytes={0: largest * self.channel.row_bytes})

        def run() -> Tensor:
            with exchange.step(setup):
                exchange.send(transfer, self.case.route, self.rows)
                arrived = exchange.receive(transfer, self.case.route, len(self.wanted)).wait()
                torch.cuda.current_stream().record_event(self.end)
                exchange.flush()
            return arrived

        return run

    def _shares(self) -> tuple[list[int], Tensor]:
        """One rank for each part of the rows, and for each produced row its place in the parts laid end to end."""
        first_of: dict[tuple[int, ...], int] = {}
        for rank in range(self.num_ranks):
            rows = self.case.rows_of(self.case.producers, rank)
            if len(rows):
                first_of.setdefault(tuple(rows.tolist()), rank)
        place = torch.empty(self.case.num_rows, dtype=torch.int64)
        place[torch.tensor([row for rows in first_of for row in rows])] = torch.arange(self.case.num_rows)
        return list(first_of.values()), place

    def _broadcast(self) -> Way:
        """As bridges do: the parts are sent to one consumer, which broadcasts all to the others; each takes its own."""
        owners, place = self._shares()
        consumers = sorted({rank for rank, *_ in self.case.consumers})
        group, leader = dist.new_group(consumers), consumers[0]
        index = place.to(self.device)[self.wanted]
        whole = torch.empty(self.case.num_rows, self.channel.hidden, dtype=torch.bfloat16, device=self.device)
        parts = torch.split(whole, [len(self.case.rows_of(self.case.producers, owner)) for owner in owners])

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
        size = max(len(self.case.rows_of(self.case.producers, owner)) for owner in owners)
        mine = torch.zeros(size, self.channel.hidden, dtype=torch.bfloat16, device=self.device)
        whole = torch.empty(self.num_ranks * size, self.channel.hidden, dtype=torch.bfloat16, device=self.device)
        counts = torch.tensor([len(self.case.rows_of(self.case.producers, owner)) for owner in owners])
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
                    raise SystemExit(f"{self.case.name}: {name} delivers wrong rows; nothing was timed")

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


def measure_case(name: str, mib: float, args: argparse.Namespace) -> dict[str, object]:
    """Times of one layout and size by every way, and of the ceiling before and after."""
    num_bytes = int(mib * 2**20)
    num_rows = num_bytes // (2 * args.hidden)
    case = make_case(name, num_rows=num_rows, num_ranks=dist.get_world_size(), item_rows=tuple(args.item_rows))
    ways = Ways(case, hidden=args.hidden, transports=args.transports)
    ways.check()
    moved = case.busiest_rows() * 2 * args.hidden
    before = push_gb_per_s(num_bytes, args.repeats)
    times = ways.measure(args.repeats)
    push = max(before, push_gb_per_s(num_bytes, args.repeats))
    rates = {name: moved / of["median_ms"] / 1e6 for name, of in times.items()}
    return {
        "layout": name,
        "mib": mib,
        "num_segments": len(case.route),
        "busiest_rank_mib": round(moved / 2**20, 2),
        "push_gb_per_s": round(push, 1),
        "gb_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "of_push": {name: round(rate / push, 3) for name, rate in rates.items()},
        "ms": times,
    }


def work(args: argparse.Namespace) -> None:
    """One rank."""
    rank = dist.get_rank()
    torch.cuda.set_device(rank)
    # The sleep's kernel is loaded, and all ranks connected, before anything waits for a peer.
    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
    dist.all_reduce(torch.zeros(1, device="cuda"))
    about = {"gpu": torch.cuda.get_device_name(), "num_gpus": args.gpus, "torch": torch.__version__}
    show(about | {"commit": args.commit, "hidden": args.hidden, "item_rows": args.item_rows})
    for name in args.layouts:
        for mib in args.mib:
            show(measure_case(name, mib, args))


def show(line: dict[str, object]) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["dp2,tp2", "tp2,dp2", "dp2,cp2", "dp1/dp1"])
    parser.add_argument("--mib", type=float, nargs="+", default=[1, 16, 256], help="bytes of all rows")
    parser.add_argument("--transports", nargs="+", default=["nccl", "peer"], choices=["nccl", "peer"])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--item-rows", type=int, nargs=2, default=[64, 1024], help="shortest and longest item")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    reason = library.missing() or ("needs two GPUs" if args.gpus < 2 else None)
    if reason is not None:
        print(f"benchmarks/boundary.py: {reason}; nothing was measured", file=sys.stderr)
        return
    launch(work, args, num_ranks=args.gpus, backend=BACKEND)


if __name__ == "__main__":
    main()
