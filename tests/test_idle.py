"""What is made of the kernels of a step, from traces written out in the test; times in microseconds."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks._idle import Parts, Ran, beyond, divide, idle_figures, idle_without_profile, read_trace

US = 1000
COMPUTE, LINK = 7, 20


def event(
    name: str, start: float, duration: float, *, stream: int = COMPUTE, category: str = "kernel"
) -> dict[str, Any]:
    return {"cat": category, "name": name, "ts": start, "dur": duration, "tid": stream}


def kernels(*spans: tuple[float, float]) -> list[dict[str, Any]]:
    """Of the stream that computes, from start to end."""
    return [event(f"gemm_{start}", start, end - start) for start, end in spans]


def parts_of(ran: Ran, *, span_us: int, collective_us: int = 0) -> dict[str, int]:
    parts = divide(ran, span_ns=span_us * US, collective_ns=collective_us * US)
    assert parts.span == span_us * US
    return {name: getattr(parts, name) // US for name in Parts.__slots__ if getattr(parts, name)}


def test_gaps_are_told_apart_by_their_length() -> None:
    ran = read_trace(kernels((100, 200), (204, 300), (305, 400), (1399, 1500), (2500, 2600)))
    assert parts_of(ran, span_us=3000) == {
        "work": 100 + 96 + 95 + 101 + 100,
        "between_kernels": 4,
        "slow_launches": 5 + 999,
        "waiting": 1000,
        "ends": 100 + 400,
    }


def test_kernels_side_by_side_count_once() -> None:
    assert parts_of(read_trace(kernels((0, 100), (50, 80), (90, 150))), span_us=150) == {"work": 150}


def test_a_receive_that_spins_is_no_work_and_hides_no_gap() -> None:
    receive = event("ncclDevKernel_SendRecv(x)", 0, 5000, stream=LINK)
    assert parts_of(read_trace([receive, *kernels((0, 100), (2100, 2200))]), span_us=2200) == {
        "work": 200,
        "waiting": 2000,
    }


def test_work_is_what_the_stream_that_computes_does_within_its_gpu() -> None:
    others = [
        event("Memcpy DtoD (Device -> Device)", 100, 50, category="gpu_memcpy"),
        event("Memset (Device)", 150, 10, category="gpu_memset"),
        event("Memcpy HtoD (Pinned -> Device)", 160, 40, category="gpu_memcpy"),
        event("Memcpy DtoD (Device -> Device)", 160, 40, stream=LINK, category="gpu_memcpy"),
        event("put", 160, 40, stream=LINK),
        event("hetsched::cuda::(anonymous namespace)::wait_for_counts_kernel(Counts)", 160, 40),
        event("gemm", 0, 900, category="gpu_user_annotation"),
        {"ph": "M", "name": "process_name"},
    ]
    ran = read_trace([*others, *kernels((0, 100), (200, 300))])
    assert parts_of(ran, span_us=300) == {"work": 100 + 60 + 100, "slow_launches": 40}


@pytest.mark.parametrize(("kind", "stream"), [("AllReduce", COMPUTE), ("AllReduce", LINK), ("SendRecv", COMPUTE)])
def test_a_sum_of_gradients_counts_as_long_as_on_the_rank_that_comes_last(kind: str, stream: int) -> None:
    early = read_trace([*kernels((0, 100)), event(f"ncclDevKernel_{kind}(x)", 90, 310, stream=stream)])
    late = read_trace([*kernels((0, 350)), event(f"ncclDevKernel_{kind}(x)", 350, 50, stream=stream)])
    least = min(early.collective_ns, late.collective_ns) // US
    assert parts_of(early, span_us=400, collective_us=least) == {"work": 100, "collective": 50, "waiting": 250}
    assert parts_of(late, span_us=400, collective_us=least) == {"work": 350, "collective": 50}


def test_a_rank_that_ran_nothing_was_idle() -> None:
    assert parts_of(read_trace([]), span_us=100) == {"ends": 100}


PARTS = Parts(work=700, collective=50, between_kernels=40, slow_launches=60, waiting=100, ends=50)


def test_idle_time_beyond_a_prediction_is_the_sum_of_its_causes() -> None:
    found = beyond(PARTS, 0.1)
    assert found == pytest.approx({"total": 0.15, "between_kernels": 0.04, "slow_launches": 0.06, "bubbles": 0.05})
    assert found.pop("total") == pytest.approx(sum(found.values()))


def test_the_report_is_of_the_rank_that_idled_most_beyond_its_own_prediction() -> None:
    other = Parts(work=500, collective=0, between_kernels=0, slow_launches=0, waiting=500, ends=0)
    found = idle_figures([other, PARTS], predicted=[0.45, 0.1], measured=[0.5, 0.2])
    assert found["busy_percent"] == [50, 70]
    assert found["idle_beyond_predicted_percent"] == {
        "rank": 1,
        "total": 15,
        "between_kernels": 4,
        "slow_launches": 6,
        "bubbles": 5,
    }
    assert found["ranks"][1] == {
        "work_percent": 70,
        "collective_percent": 5,
        "between_kernels_percent": 4,
        "slow_launches_percent": 6,
        "waiting_percent": 10,
        "ends_percent": 5,
        "bubble_percent": 20,
        "inside_actions_percent": 5,
        "predicted_bubble_percent": 10,
    }


def test_without_a_prediction_nothing_is_beyond_it() -> None:
    found = idle_figures([PARTS])
    assert found.keys() == {"busy_percent", "ranks"}
    assert "bubble_percent" not in found["ranks"][0]


def test_without_the_profile_the_same_work_fills_more_of_a_shorter_step() -> None:
    parts = [Parts(600, 40, 60, 100, 100, 100), Parts(800, 0, 50, 50, 50, 50)]
    assert idle_without_profile(parts, span_ns=800, predicted=[0.15, 0.0]) == {
        "timeline_ms": 0.0,
        "idle_percent": [20.0, 0.0],
        "idle_beyond_predicted_percent": [5.0, 0.0],
    }
