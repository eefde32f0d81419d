"""torch's schedule CSV as a program: a row a rank, a cell an action, a blank cell an idle step.

Compute-only files and files with transfers and collectives are read alike; the latter give a lowered program.

Source: torch/distributed/pipelining/schedules.py, ``_PipelineScheduleRuntime._load_csv`` and ``_dump_csv``.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from hetsched.errors import ScheduleError
from hetsched.exchange.torch_cell import parse_cell
from hetsched.exchange.torch_order import check_torch_order
from hetsched.layout.placement import ModuleOnLanes, Topology
from hetsched.schedule.action import Action
from hetsched.schedule.program import Program

MODULE = "llm"


@dataclass(frozen=True, slots=True)
class _Cell:
    """An action and where it stands in the file; rows and columns count from 1."""

    row: int
    column: int
    action: Action

    def fault(self, problem: str) -> ScheduleError:
        return ScheduleError(f"row {self.row}, column {self.column}: {problem}")


def program_from_torch_csv(text: str, *, module: str = MODULE) -> Program:
    """The program of a file; row r is lane r, and a stage lies on the lane whose row has its actions.

    Idle steps are dropped: a lane does its list in order, as torch's runtime does. Whether the program is sound is
    the checker's business, but for the order of transfers, where torch asks for more (``torch_order``).

    Args:
        text: contents of the file.
        module: name of the one module that the stages belong to.

    Raises:
        ScheduleError: an empty file or row, a cell that is no action, a stage in two rows, a stage or microbatch
            that is left out of the numbering; the message names row and column. Or transfers that torch mixes up.
    """
    rows = [_read_row(number, cells, module) for number, cells in enumerate(_split(text), start=1)]
    if not rows:
        raise ScheduleError("the file is empty; torch's schedule CSV has one row of actions for each rank")
    cells = [cell for row in rows for cell in row]
    num_microbatches = _count_microbatches(cells)
    lane_of = _place_stages(cells)
    stages = tuple(((lane_of[stage],),) for stage in range(len(lane_of)))
    topology = Topology(len(rows), (ModuleOnLanes(module, stages),))
    program = Program(topology, num_microbatches, tuple(tuple(cell.action for cell in row) for row in rows))
    check_torch_order(program)
    return program


def _split(text: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        raise ScheduleError(f"row {len(rows) + 1}: not CSV: {error}") from error
    return rows


def _read_row(number: int, texts: list[str], module: str) -> list[_Cell]:
    cells = []
    for column, text in enumerate(texts, start=1):
        stripped = text.strip(" ")
        if not stripped:
            continue
        try:
            cells.append(_Cell(number, column, parse_cell(stripped, module=module)))
        except ScheduleError as error:
            raise ScheduleError(f"row {number}, column {column}: {error}") from error
    if not cells:
        raise ScheduleError(f"row {number}: no actions; every row of torch's schedule CSV is a rank with its stages")
    return cells


def _count_microbatches(cells: list[_Cell]) -> int:
    """One more than the largest, all smaller ones being there too."""
    where = {m: cell for cell in cells for part in cell.action.flat() for m in part.microbatches}
    if not where:
        raise cells[0].fault("the file has no action on a microbatch")
    largest = max(where)
    if len(where) <= largest:
        missing = next(m for m in range(largest) if m not in where)
        raise where[largest].fault(f"{where[largest].action}, but the file has no action on microbatch {missing}")
    return largest + 1


def _place_stages(cells: list[_Cell]) -> dict[int, int]:
    """Stage -> lane, each stage from 0 on being on one lane."""
    where: dict[int, _Cell] = {}
    for cell in cells:
        for part in cell.action.flat():
            known = where.setdefault(part.stage, cell)
            if known.row != cell.row:
                raise cell.fault(
                    f"{cell.action}: stage {part.stage} is in two rows; {known.action} is in row {known.row}, "
                    f"column {known.column}"
                )
    largest = max(where)
    if len(where) <= largest:
        missing = next(stage for stage in range(largest) if stage not in where)
        raise where[largest].fault(f"{where[largest].action}, but the file has no action of stage {missing}")
    return {stage: cell.row - 1 for stage, cell in where.items()}
