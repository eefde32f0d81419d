"""Pack-and-put on a GPU: into the GPU's own memory case by case, and between two GPUs with flags and stream waits."""

from __future__ import annotations

import random
import socket
import sys
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from hetsched.kernels.put import counters, library, naive
from hetsched.kernels.put.counters import Counter
from hetsched.kernels.put.message import MOST_COPIES, Destination, put_message
from hetsched.runtime.events import recorded_event

REASON = library.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

NUM_ROWS = 4096
NUM_ROUNDS = 200
KERNEL, COPIES, FLAG_EARLY = "kernel", "batch of copies", "mutant: flag before rows"


def random_runs(num_runs: int, *, longest: int, num_destinations: int, generator: torch.Generator) -> Tensor:
    """Runs of 0 to ``longest`` rows; they may overlap in the source but never in a destination."""
    length = torch.randint(0, longest + 1, (num_runs,), generator=generator)
    length[length.cumsum(0) > NUM_ROWS] = 0
    source_row = (torch.rand(num_runs, generator=generator) * (NUM_ROWS - length)).long()
    number = torch.randint(0, num_destinations, (num_runs,), generator=generator)
    return torch.stack([source_row, number, length.cumsum(0) - length, length], dim=1).contiguous()


def bits(rows: Tensor) -> Tensor:
    return rows.contiguous().view(torch.uint8)


@pytest.mark.parametrize("is_on_gpu", [False, True], ids=["host list", "device list"])
@pytest.mark.parametrize(
    ("dtype", "hidden"),
    [
        *((torch.bfloat16, hidden) for hidden in (1, 2, 4, 8, 129, 1000, 4096)),
        *((torch.float16, hidden) for hidden in (63, 128)),
        *((torch.float32, hidden) for hidden in (1, 127, 1000)),
        *((torch.float64, 3), (torch.uint8, 5)),
    ],
)
@pytest.mark.parametrize("num_runs", [0, 1, 7, 127, 130, 1400, 3000])
def test_ragged_runs_arrive_bit_by_bit_and_nothing_else_changes(
    num_runs: int, dtype: torch.dtype, hidden: int, is_on_gpu: bool
) -> None:
    generator = torch.Generator().manual_seed(num_runs + hidden)
    runs = random_runs(num_runs, longest=40, num_destinations=3, generator=generator)
    size = (NUM_ROWS, hidden * dtype.itemsize)
    source = torch.randint(0, 256, size, dtype=torch.uint8, device="cuda").view(dtype)
    destinations = [torch.randint(0, 256, size, dtype=torch.uint8, device="cuda").view(dtype) for _ in range(3)]
    expected = [d.clone() for d in destinations]
    naive.put_runs(source, runs, expected)
    flags = [torch.full((1,), 6, dtype=torch.int32, device="cuda") for _ in range(2)]
    ticket = torch.zeros(1, dtype=torch.int32, device="cuda")
    for _ in range(2):
        signal = library.Signal(flags, 7, ticket)
        library.pack_and_put(source, runs.cuda() if is_on_gpu else runs, destinations, signal=signal)
        assert [int(flag) for flag in flags] == [7, 7]
        assert int(ticket) == 0
    for actual, wanted in zip(destinations, expected, strict=True):
        assert torch.equal(bits(actual), bits(wanted))


@pytest.mark.parametrize("is_batched", [False, True])
def test_copies_by_the_engine_are_the_same(is_batched: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    runs = random_runs(100, longest=40, num_destinations=2, generator=generator)
    source = torch.randn(NUM_ROWS, 129, device="cuda")
    destinations = [torch.full_like(source, float("nan")) for _ in range(2)]
    expected = [d.clone() for d in destinations]
    naive.put_runs(source, runs, expected)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        library.copy_runs(source, runs, destinations, is_batched=is_batched)
    torch.cuda.synchronize()
    for actual, wanted in zip(destinations, expected, strict=True):
        assert torch.equal(bits(actual), bits(wanted))


@pytest.mark.parametrize("num_pieces", [1, 100, MOST_COPIES + 1])
def test_a_message_waits_for_its_room_lands_in_it_and_is_counted(num_pieces: int) -> None:
    draw = random.Random(num_pieces)
    cuts = [0, *sorted(draw.sample(range(1, NUM_ROWS), num_pieces - 1)), NUM_ROWS]
    runs = [(start, end - start) for start, end in pairwise(cuts)]
    source = torch.randn(NUM_ROWS, 129, device="cuda").add_(0)
    starts = dict(zip(draw.sample(runs, num_pieces), runs, strict=True))
    pieces, at = [], 0
    for first, count in starts:
        pieces.append((first, at, count))
        at += count
    room = torch.full((NUM_ROWS + 5, 129), float("nan"), device="cuda")
    expected = room.clone()
    naive.put_runs(source, torch.tensor([[row, 0, to_row, count] for row, to_row, count in pieces]), [expected])
    arrived, returned, ticket = (Counter(torch.zeros(1, dtype=torch.int32, device="cuda")) for _ in range(3))
    arrived.tensor.fill_(-1)
    link, late = torch.cuda.Stream(), torch.cuda.Stream()
    # The counter wraps around with this message.
    to = Destination(room.view(-1).view(torch.uint8), arrived, 2**32, returned, 7)
    put_message(source, ((0, 0, 1),) * (num_pieces > MOST_COPIES) * num_pieces, to._replace(awaited=0), ticket=ticket)
    room.fill_(float("nan"))
    arrived.tensor.fill_(-1)
    done = recorded_event(source.device)
    torch.cuda.synchronize()
    put_message(source, tuple(pieces), to, ticket=ticket, stream=link, done=done)
    assert not link.query() and not done.query(), "the room is not free yet"
    with torch.cuda.stream(late):
        counters.stream_write_value(returned, 7)
    torch.cuda.synchronize()
    assert done.query()
    assert (int(arrived.tensor), int(ticket.tensor)) == (0, 0)
    assert torch.equal(bits(room), bits(expected))


def test_a_message_without_rows_is_counted() -> None:
    rows, room = torch.zeros(1, 1, device="cuda"), torch.empty(0, dtype=torch.uint8, device="cuda")
    arrived, ticket = (Counter(torch.zeros(1, dtype=torch.int32, device="cuda")) for _ in range(2))
    put_message(rows, (), Destination(room, arrived, 3), ticket=ticket)
    torch.cuda.synchronize()
    assert int(arrived.tensor) == 3


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (((0, 0, 8), (95, 8, 6)), r"pieces\[1\] puts 6 rows from 95 of 100 to 8 of 14"),
        (((0, 7, 8),), r"pieces\[0\] puts 8 rows from 0 of 100 to 7 of 14"),
        (((0, 0, 0),), r"puts 0 rows"),
        (((0, -1, 1),), r"to -1 of 14"),
    ],
)
def test_pieces_outside_the_rows_or_the_room_are_refused(pieces: tuple[tuple[int, int, int], ...], words: str) -> None:
    rows, counter = torch.zeros(100, 4, device="cuda"), Counter(torch.zeros(1, dtype=torch.int32, device="cuda"))
    room = torch.zeros(14 * 16 + 15, dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match=words):
        put_message(rows, pieces, Destination(room, counter, 1), ticket=counter)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ([90, 0, 0, 11], r"runs\[0\] copies 11 rows from 90 of 100 to 0 of 50"),
        ([0, 0, 45, 6], r"6 rows from 0 of 100 to 45 of 50"),
        ([-1, 0, 0, 1], "rows from -1"),
        ([0, 1, 0, 1], "names destination 1 of 1"),
        ([0, 0, 0, -1], "copies -1 rows"),
    ],
)
def test_a_run_outside_its_memory_is_refused(run: list[int], words: str) -> None:
    source, destination = torch.zeros(100, 8, device="cuda"), torch.zeros(50, 8, device="cuda")
    with pytest.raises(RuntimeError, match=words):
        library.pack_and_put(source, torch.tensor([run]), [destination])


def test_arguments_that_do_not_fit_are_refused() -> None:
    source, runs = torch.zeros(100, 8, device="cuda"), torch.zeros(0, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"destinations\[0\] has hidden size 4"):
        library.pack_and_put(source, runs, [source.view(200, 4)])
    with pytest.raises(RuntimeError, match="contiguous"):
        library.pack_and_put(source.t(), runs, [source])
    with pytest.raises(RuntimeError, match="int64"):
        library.pack_and_put(source, runs.int(), [source])
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    with pytest.raises(RuntimeError, match="rows must be contiguous"):
        put_message(source.t(), (), Destination(source.view(torch.uint8), Counter(flag), 1), ticket=Counter(flag))
    with pytest.raises(ValueError, match="one int32 in a GPU's memory"):
        Counter(flag.expand(2))
    with pytest.raises(RuntimeError, match="as many values: 1 and 2"):
        counters.wait_for_counts([Counter(flag)], [0, 0])
    with pytest.raises(RuntimeError, match="flags need a ticket"):
        torch.ops.hetsched.pack_and_put(source, runs, [source], [flag], 1, None, 1)


def test_a_stream_waits_for_its_counter_even_across_the_wrap() -> None:
    counter = Counter(torch.full((1,), -2, dtype=torch.int32, device="cuda"))
    # A kernel is loaded with its first use, and loading it waits for every stream: not while one waits for a value.
    out = torch.full((1,), -1.0, device="cuda").add_(1)
    waiting, writing = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(waiting):
        counters.wait_for_counts([counter], [1])
        out.add_(1)
    assert not waiting.query()
    with torch.cuda.stream(writing):
        counters.stream_write_value(counter, 2**32 - 1)
        counters.stream_write_value(counter, 1)
    torch.cuda.synchronize()
    assert out.item() == 1


def exchange(rank: int, port: int, way: str) -> None:
    """Both ranks send ragged runs at random times; each reads what its stream has waited for."""
    import torch.distributed._symmetric_memory as symmetric_memory

    torch.cuda.set_device(rank)
    device = torch.device("cuda", rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, device_id=device)
    hidden, peer = 520, 1 - rank
    inbox = symmetric_memory.empty(NUM_ROWS, hidden, dtype=torch.bfloat16, device=device)
    arrived = symmetric_memory.empty(1, dtype=torch.int32, device=device)
    arrived.zero_()
    group = dist.group.WORLD
    outbox = symmetric_memory.rendezvous(inbox, group).get_buffer(peer, inbox.shape, inbox.dtype)
    sent = symmetric_memory.rendezvous(arrived, group).get_buffer(peer, (1,), torch.int32)
    ticket, counts = torch.zeros(1, dtype=torch.int32, device=device), [Counter(of) for of in (arrived, sent)]
    num_wrong, sending = 0, torch.cuda.Stream()
    for value in range(1, NUM_ROUNDS + 1):
        made = [torch.Generator().manual_seed(2 * value + r) for r in range(2)]
        runs = [random_runs(60, longest=64, num_destinations=1, generator=g) for g in made]
        rows = [torch.randn(NUM_ROWS, hidden, generator=g).bfloat16().to(device) for g in made]
        inbox.fill_(float("nan"))
        expected = inbox.clone()
        naive.put_runs(rows[peer], runs[peer], [expected])
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda._sleep(int(torch.randint(0, 1_000_000, ())))  # type: ignore[no-untyped-call]
        if way == FLAG_EARLY:
            counters.stream_write_value(counts[1], value)
            torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
        signal = library.Signal([sent], value, ticket)
        if way == COPIES:
            sending.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(sending):
                library.copy_runs(rows[rank], runs[rank], [outbox], is_batched=True)
                counters.stream_write_value(counts[1], value)
        else:
            library.pack_and_put(rows[rank], runs[rank], [outbox], signal=signal)
        with torch.cuda.stream(torch.cuda.Stream()):
            counters.wait_for_counts(counts[:1], [value])
            seen = inbox.clone()
        torch.cuda.synchronize()
        num_wrong += int(not torch.equal(bits(seen), bits(expected)))
        dist.barrier()
    dist.destroy_process_group()
    print(f"rank {rank}: {num_wrong} of {NUM_ROUNDS} wrong", file=sys.stderr)
    if bool(num_wrong) != (way == FLAG_EARLY):
        raise AssertionError(f"rank {rank}: {num_wrong} of {NUM_ROUNDS} messages were read wrong")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("way", [KERNEL, COPIES, FLAG_EARLY])
def test_a_peer_that_waits_for_the_flag_reads_every_row(way: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(exchange, args=(port, way), nprocs=2)  # type: ignore[no-untyped-call]
