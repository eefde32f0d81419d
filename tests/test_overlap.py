"""What is made of the ranks' messages, from messages written out in the test; times in nanoseconds."""

from __future__ import annotations

from benchmarks.overlap import Figures, evaluate
from hetsched.runtime.measure.context_meter import Passed
from hetsched.runtime.measure.metered import Received, Sent, Traffic
from hetsched.runtime.measure.overlap import RankTraffic, overlaps
from hetsched.sim.overlap import Overlap

US = 1000


def sent(posted_us: int, arrived_us: int | None = None, *, peer: int = 1) -> Sent:
    arrived_ns = None if arrived_us is None else arrived_us * US
    return Sent("llm, forward", 0, peer, num_bytes=640, posted_ns=posted_us * US, arrived_ns=arrived_ns)


def received(asked_us: int, went_on_us: int, *, peers: tuple[int, ...] = (0,)) -> Received:
    return Received("llm, forward", 0, peers, asked_us * US, went_on_us * US)


def between(message: Received, *, arrived_us: int | None = None, late_us: int = 0) -> Overlap:
    """Of rank 0, which sent at 100 us what arrived then on its clock, and rank 1, which began so much later."""
    sender = RankTraffic(5000 * US, Traffic((sent(100, arrived_us),), ()), {})
    receiver = RankTraffic((5000 + late_us) * US, Traffic((), (message,)), {})
    (found,) = overlaps([sender, receiver])
    return found


def figures(found: Overlap) -> tuple[int, int]:
    return found.under_way_ns // US, found.exposed_ns // US


def test_a_message_is_under_way_from_when_its_rows_were_there() -> None:
    assert figures(between(received(0, 400), arrived_us=400)) == (300, 300)
    assert figures(between(received(250, 400), arrived_us=400)) == (300, 150)
    assert figures(between(received(700, 701), arrived_us=400)) == (300, 0)
    assert figures(between(received(0, 150), arrived_us=400, late_us=250)) == (300, 150)
    assert figures(between(received(0, 150), late_us=250)) == (300, 150)


def test_where_nobody_saw_it_arrive_it_was_under_way_until_it_was_missed_no_longer() -> None:
    assert figures(between(received(250, 400))) == (300, 150)
    assert figures(between(received(400, 401))) == (300, 0)
    assert figures(between(received(50, 51))) == (0, 0)


def test_of_several_senders_the_last_one_counts() -> None:
    posted = [sent(100, 350, peer=2), sent(300, 450, peer=2)]
    ranks = [RankTraffic(0, Traffic((message,), ()), {}) for message in posted]
    (found,) = overlaps([*ranks, RankTraffic(0, Traffic((), (received(0, 450, peers=(0, 1)),)), {})])
    assert figures(found) == (150, 150)
    assert (found.num_messages, found.num_bytes) == (1, 1280)
    assert found.hidden == 0


def test_of_several_senders_all_have_to_be_seen() -> None:
    ranks = [RankTraffic(0, Traffic((message,), ()), {}) for message in (sent(100, 350, peer=2), sent(300, peer=2))]
    (found,) = overlaps([*ranks, RankTraffic(0, Traffic((), (received(400, 500, peers=(0, 1)),)), {})])
    assert figures(found) == (200, 100)


def test_context_parallel_messages_are_those_of_all_ranks() -> None:
    context = {"llm": (Passed(100, 0, 400, 100), Passed(50, 500, 600, 0)), "vision": ()}
    (found,) = overlaps([RankTraffic(at, Traffic((), ()), context) for at in (0, 77)])
    assert found == Overlap("llm, context", 4, 300, 1000, 200)
    assert found.hidden == 0.8


def test_a_profile_is_read_as_messages_and_work() -> None:
    """Of NCCL's 1000 us and the copy's 300 us, 500 us and 100 us have a kernel beside them."""
    spans = [
        ("kernel", "ncclDevKernel_SendRecv(x)", 0, 1000),
        ("kernel", "attention", 500, 2000),
        ("kernel", "short", 600, 100),
        ("gpu_memcpy", "Memcpy PtoP (Device -> Device)", 2400, 300),
        ("kernel", "ncclDevKernel_AllReduce(x)", 0, 3000),
        ("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 0, 3000),
        ("gpu_user_annotation", "attention", 0, 3000),
    ]
    events = [{"cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in spans]
    assert evaluate([*events, {"ph": "M", "name": "process_name"}]) == Figures(1.3, 0.7)
