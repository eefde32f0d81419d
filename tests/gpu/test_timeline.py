"""What is recorded of a step on two GPUs, whose stages are matmuls of known cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist

from hetsched.kernels.put import library
from hetsched.plan import parse_plan
from hetsched.runtime.measure.recorder import Record
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.schedule.action import Kind
from hetsched.sim.bubble import bubbles
from hetsched.sim.measured import measured_costs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Stream, Timeline
from hetsched.train.launch import launch
from tests.gpu.timeline_ranks import HIDDEN, Seen, burn_on_ranks

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or not dist.is_nccl_available(), reason="needs two GPUs and NCCL"
)

MS = 1_000_000
NUM_MICROBATCHES = 4
ALIGNED_NS = 50_000
"""How well the clocks of two GPUs agree through the host's."""


@pytest.fixture(scope="module", params=["nccl", "peer"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Seen]]:
    """Of each rank."""
    if request.param == "peer" and (reason := library.missing()) is not None:
        pytest.skip(reason)
    plan = parse_plan(f"""
name = "burning"
world_size = 2
microbatches = {NUM_MICROBATCHES}
dtype = "float32"
transport = "{request.param}"
schedule.encoder = "stage0"
boundaries = [{{ producer = "vision", consumer = "llm" }}]
modules.vision = {{ hidden = {HIDDEN}, first_rank = 0 }}
modules.llm = {{ hidden = {HIDDEN}, first_rank = 0, layout.pp = 2 }}
""")
    folder = tmp_path_factory.mktemp("burnt")
    launch(burn_on_ranks, plan, folder, num_ranks=2, backend=BACKEND)
    return [torch.load(folder / f"seen-{rank}.pt", weights_only=False) for rank in range(2)]


def work_ns(records: Sequence[Record]) -> int:
    return sum(record.work_ns for record in records if record.action.kind.is_compute)


def waited_ns(records: Sequence[Record]) -> int:
    return sum(record.waited_ns for record in records if record.action.kind is not Kind.REDUCE_GRAD)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", ["even", "late"])
def test_busy_time_is_that_of_the_matmuls(seen: list[dict[str, Seen]], rank: int, step: str) -> None:
    found = seen[rank][step]
    assert found.burnt_ns > 20 * MS
    assert work_ns(found.records) == pytest.approx(found.burnt_ns, rel=0.1)


@pytest.mark.parametrize("rank", [0, 1])
def test_launches_timed_by_the_host_would_be_noticed(seen: list[dict[str, Seen]], rank: int) -> None:
    found = seen[rank]["by the host"]
    assert work_ns(found.records) < 0.5 * found.burnt_ns


def test_a_rank_waits_longer_for_one_that_is_late(seen: list[dict[str, Seen]]) -> None:
    even, late = (seen[0][step] for step in ("even", "late"))
    delay = seen[1]["late"].burnt_ns - seen[1]["even"].burnt_ns
    assert delay > 20 * MS
    longer = waited_ns(late.records) - waited_ns(even.records)
    assert longer == pytest.approx(delay, rel=0.15)
    assert work_ns(late.records) == pytest.approx(work_ns(even.records), rel=0.1)


@pytest.mark.parametrize("step", ["even", "late"])
def test_the_ranks_lie_on_one_clock(seen: list[dict[str, Seen]], step: str) -> None:
    timeline = Timeline.from_json(seen[0][step].timeline)
    ends = {str(s.action): s.end_ns for s in timeline.stream(0, Stream.COMPUTE)}
    starts = {str(s.action): s.start_ns for s in timeline.stream(1, Stream.COMPUTE)}
    for m in range(NUM_MICROBATCHES):
        assert starts[f"llm:1F{m}"] > ends[f"llm:0F{m}"] - ALIGNED_NS
    assert starts["llm:1F0"] < ends["llm:0F0"] + 2 * MS, "lane 1 has nothing else to do"
    for rank in range(2):
        assert abs(seen[rank][step].drift_ns) < ALIGNED_NS


def test_the_simulated_step_with_these_costs_is_the_measured_one(seen: list[dict[str, Seen]]) -> None:
    measured = Timeline.from_json(seen[0]["even"].timeline)
    predicted = simulate(measured.program, measured_costs([measured]))
    assert measured.makespan_ns == pytest.approx(predicted.makespan_ns, rel=0.1)
    for mine, theirs in zip(bubbles(measured), bubbles(predicted), strict=True):
        assert abs(mine.total - theirs.total) < 0.1 * predicted.makespan_ns


def test_host_time_and_messages_are_reported(seen: list[dict[str, Seen]]) -> None:
    report, found = seen[0]["even"].report, {o.name: o for o in seen[0]["even"].overlaps}
    assert report.host_us_per_action is not None
    assert report.runtime_us_per_action is not None
    assert 0 < report.runtime_us_per_action < report.host_us_per_action < 5000
    forward = found["llm stages 0 and 1, forward"]
    assert (forward.num_messages, forward.num_bytes) == (NUM_MICROBATCHES, 4 * HIDDEN * 8 * 2 * NUM_MICROBATCHES)
    assert 0 < forward.under_way_ns < NUM_MICROBATCHES * 5 * MS
