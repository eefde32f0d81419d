"""What a GPU did in a step and why it idled, from the events of its trace; integer nanoseconds.

The step's time is divided into parts that add up to it:

- **work**: the stream that computes (the one with the most kernels) has a kernel running, or copies or fills memory of
  its GPU.
- **collective**: a sum of gradients runs and no work does, for as long as on the rank that comes to it last.
- **between_kernels**: gaps shorter than 5 us. Every launch leaves one.
- **slow_launches**: gaps of 5 us to 1 ms. The queue had run empty, and the host had yet to launch what came next; short
  waits for a message are here too.
- **waiting**: longer gaps, and what a sum of gradients takes beyond **collective**. Other ranks have yet to make
  what this one needs.
- **ends**: before the first kernel and after the last: warmup and cooldown.

The first two are what a timeline of actions counts as work too; the others are idle time. NCCL's kernels spin while
they wait for their peer, so those by which messages are sent and received are neither, and leave a gap where nothing
else runs; nor is the kernel work by which a stream waits for a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from benchmarks._intervals import length, merged

BETWEEN_KERNELS_NS = 5_000
SLOW_LAUNCH_NS = 1_000_000

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ran:
    """When a GPU was busy in a step; disjoint intervals, ascending, of any clock.

    Args:
        work: with work.
        occupied: with work or a collective.
    """

    work: tuple[Interval, ...]
    occupied: tuple[Interval, ...]

    @property
    def collective_ns(self) -> int:
        """How long a collective ran and no work did, waiting for the last rank included."""
        return length(self.occupied) - length(self.work)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a step, in nanoseconds; see the module."""

    work: int
    collective: int
    between_kernels: int
    slow_launches: int
    waiting: int
    ends: int

    @property
    def span(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def busy_ns(self) -> int:
        """Working, or in a sum of gradients that all ranks had come to."""
        return self.work + self.collective

    @property
    def idle(self) -> float:
        """The share of the step that was idle."""
        return 1 - self.share("work") - self.share("collective")

    def share(self, *names: str) -> float:
        """Of the step."""
        return sum(getattr(self, name) for name in names) / self.span if self.span else 0.0


def read_trace(events: Iterable[Mapping[str, Any]]) -> Ran:
    """What ran, by the events of a Chrome trace of one GPU in which all that is recorded belongs to the step."""
    on_gpu = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    computes = Counter(e["tid"] for e in on_gpu if e["cat"] == "kernel" and not _is_nccl(e))
    stream = max(computes, key=lambda tid: computes[tid], default=None)
    work = [_interval(e) for e in on_gpu if e["tid"] == stream and _is_work(e)]
    # Sums of gradients may send and receive as well, but do so on the stream that computes.
    collectives = [_interval(e) for e in on_gpu if _is_nccl(e) and (e["tid"] == stream or "SendRecv" not in e["name"])]
    return Ran(tuple(merged(work)), tuple(merged(work + collectives)))


def divide(ran: Ran, *, span_ns: int, collective_ns: int) -> Parts:
    """The parts of a step on one GPU.

    Args:
        ran: there.
        span_ns: from the start of the step to its end on any rank; what ran is within it.
        collective_ns: the least ``Ran.collective_ns`` of all ranks, since the rank that comes last waits for nobody.
    """
    first, last = (ran.occupied[0][0], ran.occupied[-1][1]) if ran.occupied else (0, 0)
    gaps = [start - end for (_, end), (start, _) in pairwise(ran.occupied)]
    short = sum(gap for gap in gaps if gap < BETWEEN_KERNELS_NS)
    long = sum(gap for gap in gaps if gap >= SLOW_LAUNCH_NS)
    return Parts(
        work=length(ran.work),
        collective=min(collective_ns, ran.collective_ns),
        between_kernels=short,
        slow_launches=sum(gaps) - short - long,
        waiting=long + max(0, ran.collective_ns - collective_ns),
        ends=max(0, span_ns - (last - first)),
    )


def beyond(parts: Parts, predicted: float) -> dict[str, float]:
    """What a GPU idled beyond a predicted bubble, as shares of the step: ``total``, and by cause.

    The prediction is held against what bubbles are made of, so ``bubbles`` is how much longer they were than predicted,
    and is negative where the host was late in them as well.
    """
    return {
        "total": parts.idle - predicted,
        "between_kernels": parts.share("between_kernels"),
        "slow_launches": parts.share("slow_launches"),
        "bubbles": parts.share("waiting", "ends") - predicted,
    }


def idle_without_profile(every: Sequence[Parts], *, span_ns: int, predicted: Sequence[float]) -> dict[str, Any]:
    """What GPUs idle in a step that nobody profiles, in percent: the same work, in the time that such a step takes.

    Args:
        every: the parts of each rank, of the profiled step.
        span_ns: of the other one.
        predicted: each rank's bubble in a simulated timeline.
    """
    idle = [1 - parts.busy_ns / span_ns for parts in every]
    return {
        "timeline_ms": round(span_ns / 1e6, 2),
        "idle_percent": [percent(share) for share in idle],
        "idle_beyond_predicted_percent": [percent(of - share) for of, share in zip(idle, predicted, strict=True)],
    }


def idle_figures(
    every: Sequence[Parts], *, predicted: Sequence[float] = (), measured: Sequence[float] = ()
) -> dict[str, Any]:
    """A step's figures for a report, in percent of the step.

    Args:
        every: the parts of each rank.
        predicted, measured: each rank's bubble in a simulated timeline and in that of the step; none if not known. What
            idle time is in no measured bubble is inside actions: the host launched them too slowly.
    """
    ranks = [{f"{name}_percent": percent(parts.share(name)) for name in Parts.__slots__} for parts in every]
    for rank, share in enumerate(measured):
        ranks[rank] |= {"bubble_percent": percent(share), "inside_actions_percent": percent(every[rank].idle - share)}
    for rank, share in enumerate(predicted):
        ranks[rank]["predicted_bubble_percent"] = percent(share)
    result = {"busy_percent": [percent(parts.share("work")) for parts in every], "ranks": ranks}
    if not predicted:
        return result
    by_rank = [beyond(parts, share) for parts, share in zip(every, predicted, strict=True)]
    worst = max(range(len(every)), key=lambda rank: by_rank[rank]["total"])
    by_cause = {name: percent(share) for name, share in by_rank[worst].items()}
    return {"idle_beyond_predicted_percent": {"rank": worst, **by_cause}, **result}


def percent(share: float) -> float:
    """As it is printed."""
    return round(100 * share, 2)


def _is_nccl(event: Mapping[str, Any]) -> bool:
    return event["cat"] == "kernel" and str(event["name"]).startswith("nccl")


def _is_work(event: Mapping[str, Any]) -> bool:
    """Whether an event of the stream that computes is work; copies from and to the host are not the step's."""
    if "wait_for_counts" in event["name"]:
        return False
    if event["cat"] == "gpu_memcpy":
        return "DtoD" in event["name"]
    return not _is_nccl(event)


def _interval(event: Mapping[str, Any]) -> Interval:
    start = round(1e3 * event["ts"])
    return start, start + round(1e3 * event["dur"])
