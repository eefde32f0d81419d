"""torch's built-in schedules, made without processes: they import, are sound, and take the time that theory says."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.distributed.pipelining import schedules as torch_schedules
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime

from hetsched.check.validate import validate
from hetsched.cli.source import complete
from hetsched.errors import ScheduleError
from hetsched.exchange.torch_read import program_from_torch_csv
from hetsched.schedule.program import Program
from hetsched.schedule.registry import PIPELINES, Rows
from hetsched.sim.costs import Costs
from hetsched.sim.simulate import simulate

COSTS = Costs.constant(F=1, I=1, W=1)
NUM_STAGES = {
    "ScheduleGPipe": 1,
    "Schedule1F1B": 1,
    "ScheduleInterleaved1F1B": 3,
    "ScheduleLoopedBFS": 3,
    "ScheduleInterleavedZeroBubble": 3,
    "ScheduleZBVZeroBubble": 2,
    "ScheduleDualPipeV": 2,
}
"""Stages on a lane."""
SINGLE = ("ScheduleGPipe", "Schedule1F1B")
LANES, MICROBATCHES = 4, 12


def mocked_stage(stage: int, num_stages: int, num_lanes: int) -> Any:
    return SimpleNamespace(
        stage_index=stage, num_stages=num_stages, group_size=num_lanes, group_rank=0, submod=nn.Module()
    )


def torch_schedule(name: str, num_lanes: int, num_microbatches: int, *, num_virtual: int | None = None) -> Any:
    """The schedule object of rank 0, whose ``pipeline_order`` is of all ranks."""
    num_virtual = num_virtual or NUM_STAGES[name]
    stages = [mocked_stage(i * num_lanes, num_virtual * num_lanes, num_lanes) for i in range(num_virtual)]
    make = getattr(torch_schedules, name)
    if name not in SINGLE:
        return make(stages, num_microbatches)
    schedule = make(stages[0], num_microbatches)
    schedule.pipeline_order = schedule._get_pipeline_order()
    return schedule


def dumped(schedule: Any, path: Path, file_format: str) -> str:
    if isinstance(schedule, _PipelineScheduleRuntime):
        schedule._dump_csv(str(path), format=file_format)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(schedule.pipeline_order.values())
    return path.read_text()


FILES = [
    *((name, "compute_only") for name in NUM_STAGES if name != "Schedule1F1B"),
    *((name, "compute_comms") for name in NUM_STAGES if name not in SINGLE),
]


@pytest.mark.parametrize(("name", "file_format"), FILES)
def test_every_schedule_of_torch_imports_and_is_sound(name: str, file_format: str, tmp_path: Path) -> None:
    schedule = torch_schedule(name, LANES, MICROBATCHES)
    program = program_from_torch_csv(dumped(schedule, tmp_path / "schedule.csv", file_format))
    printed = [[str(action).replace("llm:", "") for action in lane] for lane in program.lanes]
    order = schedule.pipeline_order if file_format == "compute_only" else schedule.pipeline_order_with_comms
    assert printed == [[str(action) for action in actions if action is not None] for actions in order.values()]
    timeline = simulate(complete(program), COSTS)
    work = MICROBATCHES * NUM_STAGES[name] * 3
    assert timeline.lower_bound_ns is not None
    assert work < timeline.lower_bound_ns <= timeline.makespan_ns < 2 * work


@pytest.mark.parametrize("num_lanes", [2, 4, 5])
@pytest.mark.parametrize(
    ("theirs", "num_virtual", "ours"),
    [
        ("ScheduleGPipe", 1, "gpipe"),
        ("ScheduleInterleaved1F1B", 1, "interleaved"),
        ("ScheduleInterleaved1F1B", 3, "interleaved"),
        ("ScheduleDualPipeV", 2, "dualpipev"),
    ],
)
def test_a_schedule_of_torch_is_that_of_our_generator(
    theirs: str, num_virtual: int, ours: str, num_lanes: int, tmp_path: Path
) -> None:
    schedule = torch_schedule(theirs, num_lanes, 3 * num_lanes, num_virtual=num_virtual)
    text = dumped(schedule, tmp_path / "schedule.csv", "compute_only")
    assert computed(text) == PIPELINES[ours].rows(num_lanes, 3 * num_lanes, module="llm", num_virtual=num_virtual)


def computed(text: str) -> Rows:
    lanes = program_from_torch_csv(text).lanes
    return tuple(tuple(action for action in lane if action.kind.is_compute) for lane in lanes)


def test_torch_s_1f1b_is_ours_unless_it_forwards_the_wrong_microbatches(tmp_path: Path) -> None:
    """torch 2.13 dumps 1F1B with microbatches 1 to M in place of 0 to M - 1 on the last rank."""
    schedule = torch_schedule("Schedule1F1B", 3, 5)
    text = dumped(schedule, tmp_path / "schedule.csv", "compute_only")
    if "2F5" in text:
        with pytest.raises(ScheduleError, match="F5 is missing"):
            complete(program_from_torch_csv(text))
        text = re.sub(r"2F(\d)", lambda match: f"2F{int(match[1]) - 1}", text)
    complete(program_from_torch_csv(text))
    assert computed(text) == PIPELINES["1f1b"].rows(3, 5, module="llm", num_virtual=1)


def accepted_by_torch(text: str, num_lanes: int, num_microbatches: int, file_format: Any, path: Path) -> None:
    """Raises what torch's own validation raises."""
    path.write_text(text)
    stages = [mocked_stage(0, num_lanes, num_lanes)]
    _PipelineScheduleRuntime(stages, num_microbatches)._load_csv(str(path), format=file_format)


def gpipe_with_transfers(lane: int, change: Callable[[list[str]], None]) -> str:
    """GPipe on two lanes as torch lowers it, with one lane changed."""
    rows = [
        "0UNSHARD,0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1,0REDUCE_GRAD,0RESHARD",
        "1UNSHARD,1RECV_F0,1RECV_F1,1F0,1F1,1B0,1SEND_B0,1B1,1SEND_B1,1REDUCE_GRAD,1RESHARD",
    ]
    cells = rows[lane].split(",")
    change(cells)
    rows[lane] = ",".join(cells)
    return "\n".join(rows) + "\n"


def swap(first: str, second: str) -> Callable[[list[str]], None]:
    def change(row: list[str]) -> None:
        i, j = row.index(first), row.index(second)
        row[i], row[j] = row[j], row[i]

    return change


def move(action: str, where: str) -> Callable[[list[str]], None]:
    def change(row: list[str]) -> None:
        row.remove(action)
        row.insert(row.index(where), action)

    return change


def put_before(action: str, where: str) -> Callable[[list[str]], None]:
    return lambda row: row.insert(row.index(where), action)


def leave_out(action: str) -> Callable[[list[str]], None]:
    return lambda row: row.remove(action)


def test_what_torch_lowers_is_sound_before_it_is_changed(tmp_path: Path) -> None:
    text = gpipe_with_transfers(0, lambda row: None)
    accepted_by_torch(text, 2, 2, "compute_comms", tmp_path / "schedule.csv")
    validate(program_from_torch_csv(text))


@pytest.mark.parametrize(
    ("lane", "change", "fault"),
    [
        (1, swap("1RECV_F0", "1RECV_F1"), "messages arrive in the order sent"),
        (0, swap("0RECV_B0", "0RECV_B1"), "messages arrive in the order sent"),
        (1, put_before("1F0", "1B0"), "llm:1F0 is done twice"),
        (1, put_before("1B0", "1B1"), "llm:1B0 is done twice"),
        (0, put_before("0SEND_F0", "0B0"), "llm:0SEND_F0 is done twice"),
        (0, leave_out("0SEND_F1"), "llm:0SEND_F1"),
        (1, leave_out("1RECV_F1"), "llm:1RECV_F1"),
        (0, swap("0F0", "0SEND_F0"), "llm:0SEND_F0 uses the result of llm:0F0 before it exists"),
        (0, move("0RECV_B0", "0F1"), "wait"),
        (0, swap("0REDUCE_GRAD", "0B1"), "llm:0REDUCE_GRAD reduces gradients"),
    ],
)
def test_unsound_files_that_torch_accepts_are_refused(
    lane: int, change: Callable[[list[str]], None], fault: str, tmp_path: Path
) -> None:
    text = gpipe_with_transfers(lane, change)
    accepted_by_torch(text, 2, 2, "compute_comms", tmp_path / "schedule.csv")
    with pytest.raises(ScheduleError, match=fault):
        validate(program_from_torch_csv(text))


def test_a_duplicate_that_torch_accepts_in_a_compute_only_file_is_refused(tmp_path: Path) -> None:
    text = "0F0,0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1,1B1\n"
    accepted_by_torch(text, 2, 2, "compute_only", tmp_path / "schedule.csv")
    with pytest.raises(ScheduleError, match="llm:0F0 is done twice"):
        complete(program_from_torch_csv(text))


def test_a_cell_that_torch_reads_as_something_else_is_refused() -> None:
    assert str(_Action.from_str("0F1x")) == "0F1"
    with pytest.raises(ScheduleError, match="row 1, column 2: '0F1x'"):
        program_from_torch_csv("0F0,0F1x\n")


def test_the_import_has_the_idle_time_that_the_blank_cells_foretell(tmp_path: Path) -> None:
    """A row of torch's GPipe is a time step of F = 1 and B = 1."""
    schedule = torch_schedule("ScheduleGPipe", 3, 5)
    program: Program = program_from_torch_csv(dumped(schedule, tmp_path / "schedule.csv", "compute_only"))
    timeline = simulate(complete(program), Costs.constant(F=1, B=1))
    assert timeline.makespan_ns == 2 * 5 + 2 * (3 - 1)
