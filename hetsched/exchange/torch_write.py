"""A program as torch's schedule CSV, for the pipeline runtime of torch.

torch knows one chain of stages, each on one rank, through which every microbatch passes. What is none is refused.

Source: torch/distributed/pipelining/schedules.py, ``_PipelineScheduleRuntime._load_csv``.
"""

from __future__ import annotations

import csv
import io

from hetsched.errors import ScheduleError
from hetsched.exchange.chain import as_chain
from hetsched.exchange.torch_cell import print_cell
from hetsched.exchange.torch_order import check_torch_order
from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program


def program_to_torch_csv(program: Program, *, with_transfers: bool = False) -> str:
    """The file: row r has the actions of lane r.

    Args:
        program: sound; lowered if transfers are wanted. Encoders become the first stages.
        with_transfers: write transfers and collectives too (torch's ``compute_comms``). By default only compute
            actions are written (``compute_only``), and torch adds its own.

    Raises:
        ScheduleError: the modules are no chain, a stage has several replicas or no backward, an action is a window
            of microbatches, a stage leaves out a microbatch, a lane has nothing to do, or torch would mix up the
            transfers.
    """
    chain = as_chain(program)
    _check_complete(chain)
    if with_transfers:
        check_torch_order(chain)
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    for lane, actions in enumerate(chain.lanes):
        row = [print_cell(action) for action in actions if with_transfers or action.kind.is_compute]
        if not row:
            raise ScheduleError(
                f"lane {lane} has nothing to do; every row of torch's schedule CSV is a rank with stages"
            )
        writer.writerow(row)
    return out.getvalue()


def _check_complete(chain: Program) -> None:
    """Refuses a program that runs a stage on a part of the microbatches only, or no backward."""
    (module,) = chain.topology.modules
    parts = {part for actions in chain.lanes for action in actions for part in action.flat()}
    done = {(part.stage, part.kind, m) for part in parts for m in part.microbatches}
    for stage in range(module.num_stages):
        for m in range(chain.num_microbatches):
            if (stage, Kind.F, m) not in done:
                raise ScheduleError(f"stage {stage} leaves out microbatch {m}; torch takes each through every stage")
            if not {(stage, Kind.B, m), (stage, Kind.I, m)} & done:
                raise ScheduleError(
                    f"stage {stage} has no backward of microbatch {m} (a frozen module?); torch wants one of each stage"
                )
