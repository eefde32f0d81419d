"""Where encoders' actions go, and what lowering adds, on programs small enough to be written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hetsched.check.validate import validate
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder import encoder_lanes
from hetsched.schedule.program import Program
from hetsched.schedule.registry import PIPELINES, forwards_only
from tests.plan.literal import literal, pipeline, replicated
from tests.programs import training_program

PIPELINE_2 = pipeline([0], [1])


def program_of(
    *modules: ModuleOnLanes,
    num_lanes: int,
    policy: str,
    microbatches: int = 2,
    schedule: str = "1f1b",
    stage: int = 0,
) -> Program:
    """The step of an LLM and encoders that feed it."""
    edges = tuple(Edge(module.name, "llm", stage) for module in modules if module.name != "llm")
    topology = Topology(num_lanes, modules, edges)
    return training_program(topology, sink="llm", pipeline=schedule, encoder=policy, num_microbatches=microbatches)


def texts(program: Program) -> list[str]:
    """Each lane as it is written in these tests: v, a and w for the encoders, nothing for the LLM."""
    short = {"vision->llm:": "e", "audio->llm:": "x", "vision:": "v", "audio:": "a", "llm:": ""}
    lanes = []
    for lane in program.lanes:
        text = " ".join(map(str, lane))
        for name, letter in short.items():
            text = text.replace(name, letter)
        lanes.append(text)
    return lanes


PLACED = {
    "three_phase, colocated": (
        (replicated(0, 1), PIPELINE_2),
        "three_phase",
        ["v0F0 v0F1 0F0 0F1 0B0 0B1 v0B0 v0B1", "v0F0 v0F1 1F0 1B0 1F1 1B1 v0B0 v0B1"],
    ),
    "three_phase, on a lane of its own": (
        (replicated(0), pipeline([1], [2])),
        "three_phase",
        ["v0F0 v0F1 v0B0 v0B1", "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"],
    ),
    "three_phase, two stages": (
        (pipeline([0], [1], name="vision"), pipeline([1], [2])),
        "three_phase",
        ["v0F0 v0F1 v0B0 v0B1", "v1F0 v1F1 0F0 0F1 0B0 0B1 v1B0 v1B1", "1F0 1B0 1F1 1B1"],
    ),
    "three_phase, frozen": (
        (replicated(0, 1, has_backward=False), PIPELINE_2),
        "three_phase",
        ["v0F0 v0F1 0F0 0F1 0B0 0B1", "v0F0 v0F1 1F0 1B0 1F1 1B1"],
    ),
    "three_phase, two encoders": (
        (replicated(0, 1), replicated(1, name="audio"), PIPELINE_2),
        "three_phase",
        ["v0F0 v0F1 0F0 0F1 0B0 0B1 v0B0 v0B1", "a0F0 a0F1 v0F0 v0F1 1F0 1B0 1F1 1B1 v0B0 v0B1 a0B0 a0B1"],
    ),
    "stage0, homogeneous": (
        (replicated(0), PIPELINE_2),
        "stage0",
        ["v0F0 0F0 v0F1 0F1 0B0 v0B0 0B1 v0B1", "1F0 1B0 1F1 1B1"],
    ),
    "stage0, colocated: other lanes get no work": (
        (replicated(0, 1), PIPELINE_2),
        "stage0",
        ["v0F0 0F0 v0F1 0F1 0B0 v0B0 0B1 v0B1", "1F0 1B0 1F1 1B1"],
    ),
    "stage0, on a lane of its own: the order of the stage": (
        (replicated(0), pipeline([1], [2])),
        "stage0",
        ["v0F0 v0F1 v0B0 v0B1", "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"],
    ),
    "stage0, on a lane of another stage: around its work": (
        (replicated(1), PIPELINE_2),
        "stage0",
        ["0F0 0F1 0B0 0B1", "v0F0 v0F1 1F0 1B0 1F1 1B1 v0B0 v0B1"],
    ),
    "stage0, two encoders on one lane of their own": (
        (replicated(0), replicated(0, name="audio"), pipeline([1], [2])),
        "stage0",
        ["a0F0 a0F1 v0F0 v0F1 v0B0 v0B1 a0B0 a0B1", "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"],
    ),
    "stage0, two stages of which one is on the consumer's lane": (
        (pipeline([0], [1], name="vision"), pipeline([1], [2])),
        "stage0",
        ["v0F0 v0F1 v0B0 v0B1", "v1F0 0F0 v1F1 0F1 0B0 v1B0 0B1 v1B1", "1F0 1B0 1F1 1B1"],
    ),
    "stage0, two stages of which the last is around another stage's work": (
        (pipeline([0], [1], name="vision"), PIPELINE_2),
        "stage0",
        ["v0F0 v0F1 0F0 0F1 0B0 0B1 v0B0 v0B1", "v1F0 v1F1 1F0 1B0 1F1 1B1 v1B0 v1B1"],
    ),
    "stage0, two stages: a replica that ends on another lane gets no work": (
        (ModuleOnLanes("vision", (((0,), (1,)), ((2,), (3,))), takes_items=True), pipeline([2])),
        "stage0",
        ["v0F0 v0B0 v0F1 v0B1", "", "v1F0 0F0 0B0 v1B0 v1F1 0F1 0B1 v1B1", ""],
    ),
    "stage0, frozen": (
        (replicated(0, has_backward=False), PIPELINE_2),
        "stage0",
        ["v0F0 0F0 v0F1 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"],
    ),
    "stage0, replicas of the stage": (
        (replicated(0, 1), ModuleOnLanes("llm", (((0,), (1,)), ((2,), (3,))))),
        "stage0",
        [
            "v0F0 0F0 v0F1 0F1 0B0 v0B0 0B1 v0B1",
            "v0F0 0F0 v0F1 0F1 0B0 v0B0 0B1 v0B1",
            "1F0 1B0 1F1 1B1",
            "1F0 1B0 1F1 1B1",
        ],
    ),
}


@pytest.mark.parametrize("case", PLACED)
def test_encoders_are_placed_as_written(case: str) -> None:
    modules, policy, lanes = PLACED[case]
    assert texts(program_of(*modules, num_lanes=len(lanes), policy=policy)) == lanes


def test_an_encoder_that_feeds_a_later_stage_is_fused_with_that_stage() -> None:
    program = program_of(replicated(1), PIPELINE_2, num_lanes=2, policy="stage0", stage=1)
    assert texts(program) == ["0F0 0F1 0B0 0B1", "v0F0 1F0 1B0 v0B0 v0F1 1F1 1B1 v0B1"]


def test_stage0_follows_the_input_gradient_where_the_backward_is_split() -> None:
    program = program_of(replicated(0), PIPELINE_2, num_lanes=2, policy="stage0", schedule="zb-h1")
    assert texts(program)[0] == "v0F0 0F0 v0F1 0F1 0I0 v0B0 0W0 0I1 v0B1 0W1"


def test_stage0_surrounds_a_fused_pair() -> None:
    program = program_of(
        replicated(0), pipeline([0], [1], [1], [0]), num_lanes=2, policy="stage0", schedule="dualpipev", microbatches=6
    )
    lane = texts(program)[0].split()
    pairs = [i for i, text in enumerate(lane) if text.startswith("(0F") or ";0B" in text]
    assert pairs
    for i in pairs:
        if lane[i].startswith("(0F"):
            assert lane[i - 1] == f"v0F{lane[i][3:].split(';')[0]}"
        else:
            assert lane[i + 1] == f"v0B{lane[i].split(';0B')[1].split(')')[0]}"


@pytest.mark.parametrize(
    ("encoder", "policy", "lanes"),
    [
        ([0, 1], "three_phase", (0, 1)),
        ([0, 1], "stage0", (0,)),
        ([1], "stage0", (1,)),
        ([2, 3], "stage0", (2, 3)),
        ([2, 3], "three_phase", (2, 3)),
    ],
)
def test_items_go_to_lanes_where_the_encoder_runs(encoder: Sequence[int], policy: str, lanes: tuple[int, ...]) -> None:
    topology = Topology(4, (replicated(*encoder), PIPELINE_2), (Edge("vision", "llm"),))
    assert encoder_lanes(topology, topology.edges[0], policy=policy) == lanes


def test_results_are_sent_once_made_and_received_before_they_are_needed() -> None:
    program = lower_transfers(program_of(replicated(0, 1), PIPELINE_2, num_lanes=2, policy="three_phase"))
    assert texts(program) == [
        "v0F0 e0SEND_F0 v0F1 e0SEND_F1 e0RECV_F0 0F0 0SEND_F0 e0RECV_F1 0F1 0SEND_F1 "
        "0RECV_B0 0B0 e0SEND_B0 0RECV_B1 0B1 e0SEND_B1 e0RECV_B0 v0B0 e0RECV_B1 v0B1",
        "v0F0 e0SEND_F0 v0F1 e0SEND_F1 1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1 "
        "e0RECV_B0 v0B0 e0RECV_B1 v0B1",
    ]
    validate(program)


def test_a_frozen_encoder_sends_forward_and_gets_nothing_back() -> None:
    program = program_of(
        replicated(0, has_backward=False), pipeline([1]), num_lanes=2, policy="three_phase", microbatches=1
    )
    lowered = lower_transfers(program)
    assert texts(lowered) == ["v0F0 e0SEND_F0", "e0RECV_F0 0F0 0B0"]
    validate(lowered)


def test_stages_on_one_lane_hand_over_without_a_transfer() -> None:
    shape_of_a_v = pipeline([0], [1], [1], [0])
    lowered = lower_transfers(literal([shape_of_a_v], 1, "0F0 3F0 3I0 0I0 3W0 0W0", "1F0 2F0 2I0 1I0 2W0 1W0"))
    assert texts(lowered) == [
        "0F0 0SEND_F0 3RECV_F0 3F0 3I0 3SEND_B0 0RECV_B0 0I0 3W0 0W0",
        "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2I0 1I0 1SEND_B0 2W0 1W0",
    ]
    validate(lowered)


def test_replicas_on_other_lanes_still_send_what_may_cross_lanes() -> None:
    llm = ModuleOnLanes("llm", (((0,), (1,)), ((2,), (3,))))
    lowered = lower_transfers(program_of(llm, num_lanes=4, policy="three_phase", microbatches=1))
    assert texts(lowered)[1] == "0F0 0SEND_F0 0RECV_B0 0B0" and texts(lowered)[3] == "1RECV_F0 1F0 1B0 1SEND_B0"


def check_lowered(program: Program, lowered: Program) -> None:
    """The compute is the same; what it needs is received right before it, what it makes is sent right after it."""
    for before, after in zip(program.lanes, lowered.lanes, strict=True):
        assert [action for action in after if action.kind.is_compute] == list(before)
        for i, action in enumerate(after):
            if action.kind.is_transfer:
                is_receive = action.kind in (Kind.RECV_F, Kind.RECV_B)
                others = after[i + 1 :] if is_receive else after[:i][::-1]
                neighbor = next(other for other in others if not _is_same_way(other, is_receive))
                made_by = [part for part in neighbor.flat() if _uses(action, part)]
                assert made_by, f"{action} is beside {neighbor}"


def _is_same_way(action: Action, is_receive: bool) -> bool:
    return action.kind in ((Kind.RECV_F, Kind.RECV_B) if is_receive else (Kind.SEND_F, Kind.SEND_B))


def _uses(transfer: Action, part: Action) -> bool:
    """Whether the compute action takes part in the transfer."""
    producer, _, consumer = transfer.module.partition("->")
    is_forward = transfer.kind in (Kind.SEND_F, Kind.RECV_F)
    module = consumer if consumer and transfer.kind in (Kind.RECV_F, Kind.SEND_B) else producer
    return (part.module, part.stage, part.first) == (module, transfer.stage, transfer.first) and (
        part.kind is Kind.F if is_forward else part.kind in (Kind.B, Kind.I)
    )


def test_each_trained_stage_reduces_once_after_all_else_in_one_order_on_all_lanes() -> None:
    program = program_of(replicated(0, 1), PIPELINE_2, num_lanes=2, policy="three_phase", microbatches=1)
    reduced = lower_gradient_reduction(program, trained=frozenset({"vision", "llm"}))
    assert texts(reduced) == [
        "v0F0 0F0 0B0 v0B0 v0REDUCE_GRAD 0REDUCE_GRAD",
        "v0F0 1F0 1B0 v0B0 v0REDUCE_GRAD 1REDUCE_GRAD",
    ]
    only = lower_gradient_reduction(program, trained=frozenset({"llm"}))
    assert texts(only) == ["v0F0 0F0 0B0 v0B0 0REDUCE_GRAD", "v0F0 1F0 1B0 v0B0 1REDUCE_GRAD"]


@pytest.mark.parametrize("policy", ["three_phase", "stage0"])
@pytest.mark.parametrize("schedule", PIPELINES)
@pytest.mark.parametrize("encoder", [[0, 1], [1], [2, 3], [1, 2]], ids=str)
def test_every_schedule_with_every_placement_is_sound(schedule: str, policy: str, encoder: list[int]) -> None:
    stages = [0, 1, 1, 0] if schedule in ("zb-v", "dualpipev") else [0, 1] * (2 if schedule == "interleaved" else 1)
    llm = pipeline(*([lane] for lane in stages))
    num_lanes = max(2, *(lane + 1 for lane in encoder))
    for microbatches in (1, 3, 6):
        program = program_of(
            replicated(*encoder), llm, num_lanes=num_lanes, policy=policy, schedule=schedule, microbatches=microbatches
        )
        lowered = lower_transfers(program)
        check_lowered(program, lowered)
        validate(lower_gradient_reduction(lowered, trained=frozenset({"vision", "llm"})))
        validate(lower_transfers(forwards_only(program)))


@pytest.mark.parametrize("moved", [Kind.SEND_F, Kind.RECV_F, Kind.SEND_B, Kind.RECV_B])
def test_a_transfer_in_another_place_fails_that_check(moved: Kind) -> None:
    program = program_of(replicated(0, 1), PIPELINE_2, num_lanes=2, policy="three_phase", microbatches=4)
    lowered = lower_transfers(program)
    check_lowered(program, lowered)
    lane = list(lowered.lanes[0])
    place = next(i for i, action in enumerate(lane) if action.kind is moved)
    lane.insert(0 if moved in (Kind.RECV_F, Kind.RECV_B) else len(lane), lane.pop(place))
    with pytest.raises(AssertionError):
        check_lowered(program, replace(lowered, lanes=(tuple(lane), lowered.lanes[1])))


def test_each_replica_of_a_v_hands_over_on_its_own_lane() -> None:
    down_and_up = ModuleOnLanes("llm", tuple(((lane,), (lane + 1,)) for lane in (0, 2, 2, 0)))
    ends, middle = "0F0 3F0 3B0 0B0", "1F0 2F0 2B0 1B0"
    lowered = lower_transfers(literal([down_and_up], 1, ends, ends, middle, middle))
    validate(lowered)
    sent = "0F0 0SEND_F0 3RECV_F0 3F0 3B0 3SEND_B0 0RECV_B0 0B0"
    handed_over = "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0"
    assert texts(lowered) == [sent, sent, handed_over, handed_over]
