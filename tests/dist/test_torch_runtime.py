"""Exported programs run in torch's own pipeline runtime, with the gradients of sequential autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hetsched.check.validate import validate
from hetsched.errors import ScheduleError
from hetsched.exchange.chain import as_chain
from hetsched.exchange.torch_read import program_from_torch_csv
from hetsched.exchange.torch_write import program_to_torch_csv
from hetsched.layout.placement import Edge, ModuleOnLanes, StageOrder, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.program import Program
from hetsched.schedule.registry import PIPELINES
from tests.dist.pool import Pool
from tests.dist.torch_pipeline import runtime_gradients, sequential_gradients
from tests.programs import training_program

TOLERANCE = 1e-10


def llm_program(schedule: str, num_lanes: int, num_virtual: int, num_microbatches: int) -> Program:
    order: StageOrder = PIPELINES[schedule].order
    lanes = [order.pipeline_rank(stage, pp=num_lanes) for stage in range(num_lanes * num_virtual)]
    topology = Topology(num_lanes, (ModuleOnLanes("llm", tuple(((lane,),) for lane in lanes)),))
    return with_transfers(topology, schedule, "stage0", num_microbatches)


def encoder_program(schedule: str, encoder_lanes: tuple[int, ...], policy: str, num_microbatches: int) -> Program:
    """An LLM on lanes 0 and 1, and an encoder with a stage on each of the lanes given."""
    modules = (
        ModuleOnLanes("llm", (((0,),), ((1,),))),
        ModuleOnLanes("vision", tuple(((lane,),) for lane in encoder_lanes), takes_items=True),
    )
    topology = Topology(max(1, *encoder_lanes) + 1, modules, (Edge("vision", "llm"),))
    return with_transfers(topology, schedule, policy, num_microbatches)


def with_transfers(topology: Topology, schedule: str, policy: str, num_microbatches: int) -> Program:
    program = training_program(
        topology, sink="llm", pipeline=schedule, encoder=policy, num_microbatches=num_microbatches
    )
    program = lower_transfers(program)
    validate(program)
    return program


PROGRAMS = {
    "gpipe": llm_program("gpipe", 3, 1, 4),
    "1f1b": llm_program("1f1b", 4, 1, 8),
    "1f1b, fewer microbatches than lanes": llm_program("1f1b", 4, 1, 3),
    "interleaved": llm_program("interleaved", 2, 2, 6),
    "interleaved, three stages a lane": llm_program("interleaved", 2, 3, 5),
    "zb-h1": llm_program("zb-h1", 4, 1, 6),
    "zb-v": llm_program("zb-v", 3, 2, 7),
    "dualpipev": llm_program("dualpipev", 2, 2, 6),
    "encoder on its own lane": encoder_program("1f1b", (2,), "stage0", 5),
    "encoder on its own lane, all before and after": encoder_program("1f1b", (2,), "three_phase", 5),
    "encoder of two stages on lanes of its own": encoder_program("zb-h1", (2, 3), "stage0", 4),
    "encoder as the first stage": encoder_program("1f1b", (0,), "stage0", 5),
    "encoder as the first stage, under zb-h1": encoder_program("zb-h1", (0,), "stage0", 5),
    "encoder on the first lane, all before and after": encoder_program("1f1b", (0,), "three_phase", 5),
}


def largest_error(ranks: Pool, csv: str, file_format: str, program: Program) -> float:
    """How far torch's gradients are from those of sequential autograd, over the largest of the parameter."""
    (chain,) = as_chain(program).topology.modules
    places = tuple(lane for ((lane,),) in chain.stages)
    num_microbatches = program.num_microbatches
    expected = sequential_gradients(len(places), num_microbatches)
    by_rank = ranks.run(runtime_gradients, csv, file_format, places, num_microbatches, num_ranks=max(places) + 1)
    found = {name: grad for grads in by_rank for name, grad in grads.items()}
    assert found.keys() == expected.keys()
    return max(((found[n] - g).abs().max() / g.abs().max()).item() for n, g in expected.items())


@pytest.mark.parametrize("name", PROGRAMS)
def test_exports_run_in_torch_with_the_gradients_of_autograd(ranks: Pool, name: str) -> None:
    csv = program_to_torch_csv(PROGRAMS[name])
    assert largest_error(ranks, csv, "compute_only", PROGRAMS[name]) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["1f1b", "zb-h1", "dualpipev", "encoder on its own lane", "encoder as the first stage"]
)
def test_exports_with_our_transfers_run_in_torch_with_the_gradients_of_autograd(ranks: Pool, name: str) -> None:
    csv = program_to_torch_csv(PROGRAMS[name], with_transfers=True)
    assert largest_error(ranks, csv, "compute_comms", PROGRAMS[name]) < TOLERANCE


def swapped_receives() -> tuple[str, Program]:
    """GPipe on three lanes, on whose second the rows of microbatches 0 and 1 are received in each other's place."""
    csv = program_to_torch_csv(PROGRAMS["gpipe"], with_transfers=True)
    swapped = csv.replace("1RECV_F0,1F0,1SEND_F0,1RECV_F1,", "1RECV_F1,1RECV_F0,1F0,1SEND_F0,")
    assert swapped != csv
    return swapped, PROGRAMS["gpipe"]


def mixed_stages() -> tuple[str, Program]:
    """A program that is sound where each pair of stages has its channel, as in our executor."""
    program = PROGRAMS["interleaved, three stages a lane"]
    rows = (",".join(str(action).removeprefix("llm:") for action in lane) for lane in program.lanes)
    return "\r\n".join(rows) + "\r\n", program


@pytest.mark.parametrize("make", [swapped_receives, mixed_stages])
def test_receives_that_torch_accepts_and_trains_wrongly_with_are_refused_here(
    ranks: Pool, make: Callable[[], tuple[str, Program]]
) -> None:
    csv, program = make()
    assert largest_error(ranks, csv, "compute_comms", program) > 1e-2
    with pytest.raises(ScheduleError, match="messages arrive in the order sent"):
        program_from_torch_csv(csv)


def test_transfers_that_torch_would_mix_up_are_not_exported() -> None:
    with pytest.raises(ScheduleError, match="messages arrive in the order sent"):
        program_to_torch_csv(PROGRAMS["zb-v"], with_transfers=True)
