"""What transfers cost the work beside them: matmuls alone, beside the peer transport and beside NCCL.

    PYTHONPATH=. python benchmarks/boundary_beside.py --gib 1

Every GPU multiplies while it sends rows to the next one and receives as many. What arrives is checked. Times are those
of the slowest rank: of the matmuls, and of the transfers until all rows are in their places.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

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
HIDDEN = 4096
NUM_MESSAGES = 4
NUM_WARMUPS = 3
Finish = Callable[[], None]


class Ring:
    """Messages from every rank to the next over one transport.

    Args:
        transport: "nccl" or "peer".
        message_rows: of each message.
    """

    def __init__(self, transport: str, *, message_rows: int) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        device = torch.device("cuda", rank)
        wires = [Wire(0, source, (source + 1) % size, "ring") for source in range(size)]
        links = make_links(wires, [(of,) for of in range(size)])
        is_nccl = transport == "nccl"
        carrier = NcclCarrier(links, device=device) if is_nccl else PeerCarrier(links, device=device)
        streamed = StreamedTransport(carrier, links, device=device, timeout=TIMEOUT)
        self._exchange = Exchange(rank, streamed, device=device)
        self._channel = Channel(0, HIDDEN, torch.bfloat16, "ring")
        route = np.array([(wire.source, 0, wire.destination, 0, message_rows) for wire in wires])
        self._share = rank_share(route, rank, num_rows=message_rows)
        every = range(NUM_MESSAGES)
        rooms = Rooms.by([*((number, False) for number in every), *((number, True) for number in every)])
        self._setup = StepSetup(
            largest_bytes={0: message_rows * self._channel.row_bytes}, rooms={(0, of): rooms for of in range(size)}
        )
        made = torch.Generator(device)
        self._rows, self._expected = (
            torch.randn(message_rows, HIDDEN, dtype=torch.bfloat16, device=device, generator=made.manual_seed(of))
            for of in (rank, (rank - 1) % size)
        )

    def run(self, work: Finish, watch: torch.cuda.Stream) -> torch.cuda.Event:
        """Post all messages, then do the work; returns when the last rows had arrived.

        Args:
            work: enqueued on the current stream.
            watch: a stream that waits for what arrives.
        """
        with self._exchange.step(self._setup):
            arriving = []
            for number in range(NUM_MESSAGES):
                self._exchange.send(Transfer(self._channel, number), self._share, self._rows)
                arriving.append(self._exchange.receive(Transfer(self._channel, number), self._share))
            work()
            with torch.cuda.stream(watch):
                rows = [message.wait() for message in arriving]
                arrived = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                arrived.record()
                for number in range(NUM_MESSAGES):
                    self._exchange.give_back(Transfer(self._channel, number))
            self._exchange.flush()
        torch.cuda.synchronize()
        if not all(torch.equal(of, self._expected) for of in rows):
            raise SystemExit("rows are wrong; nothing was timed")
        return arrived


class Matmuls:
    """A few large products, one after the other."""

    def __init__(self, size: int, count: int) -> None:
        self._left, self._right = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        self._out, self._count = torch.empty_like(self._left), count
        self.end: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        for _ in range(self._count):
            torch.mm(self._left, self._right, out=self._out)
        self.end.record()


def time_once(ring: Ring | None, beside: Matmuls, *, watch: torch.cuda.Stream) -> tuple[float, float]:
    """Milliseconds until the products are there, and until the rows are; they start at once."""
    torch.cuda.synchronize()
    dist.all_reduce(torch.zeros(1))
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    # The devices idle while the hosts enqueue.
    torch.cuda._sleep(8_000_000)  # type: ignore[no-untyped-call]
    dist.all_reduce(torch.zeros(1, device="cuda"))
    start.record()
    if ring is None:
        beside()
        arrived = beside.end
    else:
        arrived = ring.run(beside, watch)
    torch.cuda.synchronize()
    return start.elapsed_time(beside.end), start.elapsed_time(arrived)


def slowest(times: list[float]) -> float:
    """The median of the slowest ranks' times."""
    of_all = torch.tensor(times)
    dist.all_reduce(of_all, dist.ReduceOp.MAX)
    return round(float(np.median(of_all.numpy())), 4)


def work(args: argparse.Namespace) -> None:
    """One rank."""
    torch.cuda.set_device(dist.get_rank())
    torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
    dist.all_reduce(torch.zeros(1, device="cuda"))
    matmuls, nothing = Matmuls(args.size, 4), Matmuls(args.size, 0)
    message_rows = int(args.gib * 2**30) // (2 * HIDDEN * NUM_MESSAGES)
    cases: dict[str, tuple[Ring | None, Matmuls]] = {"matmuls alone": (None, matmuls)}
    for name in ("peer", "nccl"):
        ring = Ring(name, message_rows=message_rows)
        cases |= {f"{name} alone": (ring, nothing), f"matmuls beside {name}": (ring, matmuls)}
    watch = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(NUM_WARMUPS + args.repeats):
        for name, (ring_or_none, beside) in cases.items():
            times[name].append(time_once(ring_or_none, beside, watch=watch))
    found = {}
    for name, of in times.items():
        products, rows = (slowest(list(each)) for each in zip(*of[NUM_WARMUPS:], strict=True))
        found[name] = {"products_ms": products, "rows_ms": rows}
    alone = found["matmuls alone"]["products_ms"]
    slower = {name: round(found[f"matmuls beside {name}"]["products_ms"] / alone - 1, 4) for name in ("peer", "nccl")}
    if dist.get_rank() == 0:
        about = {"gpu": torch.cuda.get_device_name(), "num_gpus": args.gpus, "torch": torch.__version__}
        print(json.dumps(about | {"commit": args.commit, "gib": args.gib, **found, "slower_by": slower}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="what each GPU sends")
    parser.add_argument("--size", type=int, default=8192, help="of the four square matrices that are multiplied")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--commit", default="unknown", help="what to print as the commit")
    args = parser.parse_args()
    reason = library.missing() or ("needs two GPUs" if args.gpus < 2 else None)
    if reason is not None:
        print(f"benchmarks/boundary_beside.py: {reason}; nothing was measured", file=sys.stderr)
        return
    launch(work, args, num_ranks=args.gpus, backend=BACKEND)


if __name__ == "__main__":
    main()
