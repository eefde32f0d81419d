"""The peer transport between two GPUs: exact rows through few slots with delays, mutants, and a peer that is silent."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from hetsched.errors import JobError
from hetsched.kernels.put import library
from hetsched.runtime.transport.peer import Outgoing, PeerTransport, Wire, check_queues

REASON = library.missing() or (None if torch.cuda.device_count() > 1 else "needs two GPUs")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

HIDDEN = 264
MAX_ROWS = 300
NUM_MESSAGES = 300
BURST = 6
TAGS = (3, 8)


def join(rank: int, port: int, *, timeout_s: float) -> PeerTransport:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, device_id=device)
    assert dist.group.WORLD is not None
    wires = [Wire(tag, source, 1 - source, 2, MAX_ROWS * HIDDEN * 4) for tag in TAGS for source in (0, 1)]
    return PeerTransport(wires, group=dist.group.WORLD, device=device, timeout=timedelta(seconds=timeout_s))


def message(tag: int, source: int, number: int) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Rows and the runs of them that are sent, the same on both ranks."""
    generator = random.Random(f"{tag} {source} {number}")
    rows = torch.full((MAX_ROWS, HIDDEN), float(generator.randrange(1 << 20))) + torch.arange(MAX_ROWS)[:, None]
    dtype = generator.choice([torch.float32, torch.bfloat16])
    cuts = sorted(generator.sample(range(MAX_ROWS + 1), 4))
    return rows.to(dtype), [(cuts[2], cuts[3] - cuts[2]), (cuts[0], cuts[1] - cuts[0])]


def delay() -> None:
    torch.cuda._sleep(random.choice([0, 0, 30_000, 1_000_000]))  # type: ignore[no-untyped-call]


def send_flag_early(self: Outgoing, rows: torch.Tensor, runs: Sequence[tuple[int, int]]) -> None:
    """A mutant of ``Outgoing.send``: the counter says that rows have arrived which have not left yet."""
    with torch.cuda.stream(self.stream):
        library.stream_write_value(self._end.arrived, self._num_sent + 1)
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
    send(self, rows, runs)


send = Outgoing.send


def exchange(rank: int, port: int, mutant: str | None) -> None:
    """Both ranks send bursts on two tags through two slots each; whoever sends or reads is often late."""
    if mutant == "no credit":
        Outgoing._await_credit = lambda self: None  # type: ignore[method-assign]
    if mutant == "early flag":
        Outgoing.send = send_flag_early  # type: ignore[method-assign]
    transport = join(rank, port, timeout_s=30)
    outgoing = {(tag, n): message(tag, rank, n) for tag in TAGS for n in range(NUM_MESSAGES)}
    on_gpu = {key: rows.cuda() for key, (rows, _) in outgoing.items()}
    taken = []
    for burst in range(0, NUM_MESSAGES, BURST):
        numbers = range(burst, burst + BURST)
        for key in ((tag, number) for number in numbers for tag in TAGS):
            delay()
            transport.send_runs(on_gpu[key], outgoing[key][1], peer=1 - rank, tag=key[0])
        for tag, number in ((tag, number) for tag in TAGS for number in numbers):
            rows, runs = message(tag, 1 - rank, number)
            wanted = torch.cat([rows[row : row + count] for row, count in runs])
            out = torch.empty(wanted.shape, dtype=rows.dtype, device="cuda")
            receive = transport.receive(out, peer=1 - rank, tag=tag)
            delay()
            receive.wait()
            taken.append((out, wanted))
    transport.flush()
    transport.close()
    num_wrong = sum(not torch.equal(out.cpu(), wanted) for out, wanted in taken)
    dist.barrier()
    dist.destroy_process_group()
    if bool(num_wrong) != (mutant is not None):
        raise AssertionError(f"rank {rank}: {num_wrong} of {len(taken)} messages are wrong")


def wait_for_nobody(rank: int, port: int, log: Path) -> None:
    """Rank 1 never sends what rank 0 waits for."""
    logging.basicConfig(filename=log)
    transport = join(rank, port, timeout_s=3 if rank == 0 else 60)
    if rank == 0:
        transport.receive(torch.empty(5, HIDDEN, device="cuda"), peer=1, tag=TAGS[0]).wait()
    torch.cuda.synchronize()
    time.sleep(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("mutant", [None, "no credit", "early flag"])
def test_every_message_arrives_exactly_unless_the_protocol_is_broken(mutant: str | None) -> None:
    spawn(exchange, args=(free_port(), mutant), nprocs=2)  # type: ignore[no-untyped-call]


def test_a_silent_peer_ends_the_process_with_edge_and_rank(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ProcessExitedException, match="exit code 1"):
        spawn(wait_for_nobody, args=(free_port(), log), nprocs=2)  # type: ignore[no-untyped-call]
    assert f"nothing arrived from rank 1: message 0 of edge {TAGS[0]}" in log.read_text()


def test_one_hardware_queue_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    with pytest.raises(JobError, match="CUDA_DEVICE_MAX_CONNECTIONS=1 puts all streams"):
        check_queues()
