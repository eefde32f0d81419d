"""The checker refuses each kind of fault with its reason, and lets sound programs pass."""

from __future__ import annotations

import pytest

from hetsched.check.validate import validate
from hetsched.errors import ScheduleError
from hetsched.layout.placement import ModuleOnLanes
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable
from tests.plan.literal import literal, pipeline, replicated, with_lane

TWO_STAGES = literal(
    [pipeline([0], [1])],
    2,
    "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1 0REDUCE_GRAD",
    "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1 1REDUCE_GRAD",
)

# One encoder on both lanes of the LLM. Microbatch 0 has items on both, 1 on lane 1 only, 2 none.
ENCODER = literal(
    [pipeline([0], [1]), replicated(0, 1)],
    3,
    "vision:0F0 vision->llm:0SEND_F0 vision->llm:0RECV_F0 0F0 0SEND_F0 vision->llm:0RECV_F1 0F1 0SEND_F1 0F2 0SEND_F2 "
    "0RECV_B0 0B0 vision->llm:0SEND_B0 0RECV_B1 0B1 vision->llm:0SEND_B1 0RECV_B2 0B2 "
    "vision->llm:0RECV_B0 vision:0B0 vision:0REDUCE_GRAD 0REDUCE_GRAD",
    "vision:0F0-1 vision->llm:0SEND_F0 vision->llm:0SEND_F1 1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1I1 1SEND_B1 1W1 "
    "1RECV_F2 1F2 1B2 1SEND_B2 vision->llm:0RECV_B0 vision->llm:0RECV_B1 vision:0B0-1 vision:0REDUCE_GRAD 1REDUCE_GRAD",
    edges=[("vision", "llm", 0)],
)

# A V: lane 0 has the first and the last stage, lane 1 both in the middle, handed over without a transfer.
V = literal(
    [pipeline([0], [1], [1], [0])],
    1,
    "0F0 0SEND_F0 3RECV_F0 3F0 3B0 3SEND_B0 0RECV_B0 0B0",
    "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0",
)

# An encoder that is a gang of two lanes.
GANG = literal(
    [pipeline([0], [1]), ModuleOnLanes("vision", (((0, 1),),), takes_items=True)],
    1,
    "vision:0F0 vision->llm:0SEND_F0 vision->llm:0RECV_F0 0F0 0SEND_F0 0RECV_B0 0B0 vision->llm:0SEND_B0 "
    "vision->llm:0RECV_B0 vision:0B0 vision:0REDUCE_GRAD",
    "vision:0F0 vision->llm:0SEND_F0 1RECV_F0 1F0 1B0 1SEND_B0 vision->llm:0RECV_B0 vision:0B0 vision:0REDUCE_GRAD",
    edges=[("vision", "llm", 0)],
)

FORWARD_ONLY = literal([pipeline([0], [1])], 2, "0F0 0SEND_F0 0F1 0SEND_F1", "1RECV_F0 1F0 1RECV_F1 1F1")
SPLIT = literal([pipeline([0])], 2, "0UNSHARD 0F0 0I0 0F1 0W0 0B1 0RESHARD 0REDUCE_GRAD")
FUSED = literal([pipeline([0])], 2, "0F0 (llm:0F1;llm:0B0)OVERLAP_F_B 0B1")

# The encoder's rows enter at the second stage, and its lane runs ahead of the first stage.
ENCODER_AHEAD = literal(
    [pipeline([0], [1]), replicated(0, has_backward=False)],
    2,
    "vision:0F0 vision->llm:0SEND_F0 vision:0F1 vision->llm:0SEND_F1 0F0 0SEND_F0 0F1 0SEND_F1",
    "1RECV_F0 vision->llm:1RECV_F0 1F0 1RECV_F1 vision->llm:1RECV_F1 1F1",
    edges=[("vision", "llm", 1)],
)

SOUND = {
    "two stages": TWO_STAGES,
    "an encoder with windows and a text-only microbatch": ENCODER,
    "a V": V,
    "a gang": GANG,
    "forward only": FORWARD_ONLY,
    "I, W and sharded parameters": SPLIT,
    "a fused pair": FUSED,
}


def refusal(program: Program, **how: object) -> str:
    with pytest.raises(ScheduleError) as caught:
        validate(program, **how)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_program_passes(name: str) -> None:
    validate(SOUND[name])


def test_two_swapped_receives_are_refused() -> None:
    text = refusal(with_lane(TWO_STAGES, 1, "1RECV_F1 1RECV_F0 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1REDUCE_GRAD"))
    assert "lane 1, action 0: llm:1RECV_F1 is out of order" in text
    assert "the next message on its channel is that of llm:0SEND_F0 (lane 0, action 1)" in text


def test_a_duplicate_action_is_refused() -> None:
    text = refusal(with_lane(TWO_STAGES, 1, "1RECV_F0 1F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1 1B0"))
    assert "lane 1, action 8: llm:1B0 is done twice: also by llm:1B0 (lane 1, action 2)" in text


def test_a_window_that_overlaps_another_is_a_duplicate() -> None:
    program = literal([replicated(0), pipeline([0])], 2, "vision:0F0-1 vision:0F1 0F0 0F1")
    assert "vision:0F1 is done twice: also by vision:0F0-1 (lane 0, action 0)" in refusal(program)


@pytest.mark.parametrize("missing", range(18))
def test_a_missing_action_is_refused(missing: int) -> None:
    """Every action of both lanes, one at a time."""
    lane, position = divmod(missing, 9)
    actions = list(TWO_STAGES.lanes[lane])
    actions.pop(position)
    assert "missing" in refusal(with_lane(TWO_STAGES, lane, " ".join(map(str, actions))))


def test_a_missing_action_names_its_lane_and_its_user() -> None:
    text = refusal(with_lane(TWO_STAGES, 0, "0F0 0SEND_F0 0F1 0SEND_F1 0B0 0RECV_B1 0B1"))
    assert "lane 0, action 4: llm:0B0 needs llm:0RECV_B0, which is missing from lane 0" in text


def test_a_circular_order_is_refused_and_the_circle_named() -> None:
    program = literal(
        [pipeline([0], [1], [0])],
        2,
        "0F0 0SEND_F0 2RECV_F0 2F0 0F1 0SEND_F1 2RECV_F1 2F1",
        "1RECV_F0 1RECV_F1 1F0 1SEND_F0 1F1 1SEND_F1",
    )
    text = refusal(program)
    assert "deadlock: the order of the actions is circular" in text
    assert "lane 0 waits at llm:2RECV_F0 for lane 1 to send in llm:1SEND_F0" in text
    assert "lane 1 waits at llm:1RECV_F1 for lane 0 to send in llm:0SEND_F1" in text


def test_a_backward_before_its_forward_is_refused() -> None:
    text = refusal(with_lane(TWO_STAGES, 1, "1RECV_F0 1B0 1F0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1 1REDUCE_GRAD"))
    assert "lane 1, action 1: llm:1B0 is a backward before its forward, llm:1F0 (lane 1, action 2)" in text


@pytest.mark.parametrize(
    ("lane", "actions", "fault"),
    [
        (0, "0SEND_F0 0F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1", "0SEND_F0 uses the result of llm:0F0 before"),
        (0, "0F0 0SEND_F0 0F1 0SEND_F1 0B0 0RECV_B0 0RECV_B1 0B1", "0B0 uses the result of llm:0RECV_B0 before"),
        (1, "1F0 1RECV_F0 1B0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1", "1F0 uses the result of llm:1RECV_F0 before"),
        (1, "1RECV_F0 1F0 1SEND_B0 1B0 1RECV_F1 1F1 1B1 1SEND_B1", "1SEND_B0 uses the result of llm:1B0 before"),
    ],
)
def test_a_result_used_before_it_exists_is_refused(lane: int, actions: str, fault: str) -> None:
    assert fault in refusal(with_lane(TWO_STAGES, lane, actions))


def test_a_result_handed_over_on_a_lane_must_exist() -> None:
    text = refusal(with_lane(V, 1, "1RECV_F0 2F0 1F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0"))
    assert "llm:2F0 uses the result of llm:1F0 before it exists" in text
    text = refusal(with_lane(V, 1, "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 1B0 2B0 1SEND_B0"))
    assert "llm:1B0 uses the result of llm:2B0 before it exists" in text


def test_a_fused_pair_does_not_feed_itself() -> None:
    text = refusal(literal([pipeline([0])], 1, "(llm:0F0;llm:0B0)OVERLAP_F_B"))
    assert "is a backward before its forward" in text


def test_a_rendezvous_deadlock_that_eager_transfers_survive_is_refused() -> None:
    validate(TWO_STAGES)
    text = refusal(TWO_STAGES, rendezvous=True)
    assert "deadlock: with rendezvous a SEND waits for its RECV; eager transfers would survive" in text
    assert "lane 0 waits at llm:0SEND_F1 for lane 1 to receive in llm:1RECV_F1" in text
    assert "lane 1 waits at llm:1SEND_B0 for lane 0 to receive in llm:0RECV_B0" in text


def test_a_rendezvous_program_without_a_circle_passes() -> None:
    validate(FORWARD_ONLY, rendezvous=True)
    validate(V, rendezvous=True)


def test_a_deadlock_through_too_few_slots_is_refused() -> None:
    validate(ENCODER_AHEAD, slots=2)
    validate(ENCODER_AHEAD, slots={("llm", "F"): 1, ("vision->llm", "F"): 2})
    for slots in (1, {("vision->llm", "F"): 1}):
        text = refusal(ENCODER_AHEAD, slots=slots)
        assert "deadlock: too few slots; with more of them the program would end" in text
        assert "lane 0 waits at vision->llm:0SEND_F1 for lane 1 to receive in vision->llm:1RECV_F0" in text
        assert "lane 1 waits at llm:1RECV_F0 for lane 0 to send in llm:0SEND_F0" in text


@pytest.mark.parametrize("slots", [0, {("llm", "X"): 1}, {("audio", "F"): 1}])
def test_slots_that_make_no_sense_are_refused(slots: object) -> None:
    assert "slots of" in refusal(ENCODER_AHEAD, slots=slots)


def test_a_collective_entered_in_different_orders_is_refused() -> None:
    both = [replicated(0, 1), replicated(0, 1, name="audio")]
    lane = "vision:0F0 audio:0F0 vision:0B0 audio:0B0 "
    reductions = ["vision:0REDUCE_GRAD audio:0REDUCE_GRAD", "audio:0REDUCE_GRAD vision:0REDUCE_GRAD"]
    validate(literal(both, 1, lane + reductions[0], lane + reductions[0]))
    text = refusal(literal(both, 1, lane + reductions[0], lane + reductions[1]))
    assert "deadlock: the order of the actions is circular" in text
    assert "lane 0 waits at vision:0REDUCE_GRAD for lane 1 to enter it too" in text
    assert "lane 1 waits at audio:0REDUCE_GRAD for lane 0 to enter it too" in text


def test_a_collective_missing_on_one_lane_is_refused() -> None:
    lanes = "vision:0F0 vision:0B0 vision:0REDUCE_GRAD", "vision:0F0 vision:0B0"
    text = refusal(literal([replicated(0, 1)], 1, *lanes))
    assert "lane 1: vision:0REDUCE_GRAD is missing" in text


def test_unshard_missing_on_one_lane_is_refused() -> None:
    lanes = "vision:0UNSHARD vision:0F0 vision:0RESHARD", "vision:0UNSHARD vision:0F0"
    text = refusal(literal([replicated(0, 1, has_backward=False)], 1, *lanes))
    assert "vision:0RESHARD happens on several lanes at once, but is missing from lane 1" in text


def test_a_gang_whose_lanes_differ_is_refused() -> None:
    lanes = [" ".join(map(str, lane)) for lane in GANG.lanes]
    text = refusal(with_lane(GANG, 1, lanes[1].replace("vision:0B0", "")))
    assert "lane 1, action 0: vision:0F0 needs vision:0B0, which is missing from lane 1" in text
    windows = literal(
        [ModuleOnLanes("vision", (((0, 1),),), takes_items=True)], 2, "vision:0F0-1", "vision:0F0 vision:0F1"
    )
    assert "vision:0F0 happens on several lanes at once, but is missing from lane 0" in refusal(windows)


def test_memory_over_the_limit_is_refused() -> None:
    held = ActionTable.parse({"F": 10, "llm:0F1": 15})
    validate(TWO_STAGES, memory=held, memory_limit=25)
    text = refusal(TWO_STAGES, memory=held, memory_limit=24)
    assert "lane 0, action 2: llm:0F1 takes the lane to 25 bytes, over the limit of 24" in text


def test_memory_is_released_by_b_or_w_and_by_f_without_backward() -> None:
    held = ActionTable.parse({"F": 10})
    split = literal([pipeline([0])], 2, "0F0 0I0 0W0 0F1 0I1 0W1")
    validate(split, memory=held, memory_limit=10)
    deferred = with_lane(split, 0, "0F0 0I0 0F1 0W0 0I1 0W1")
    assert "takes the lane to 20 bytes" in refusal(deferred, memory=held, memory_limit=19)
    frozen = literal([ModuleOnLanes("llm", (((0,),),), has_backward=False)], 2, "0F0 0F1")
    validate(frozen, memory=held, memory_limit=10)


def test_an_action_on_a_lane_without_its_stage_is_refused() -> None:
    text = refusal(literal([pipeline([0], [1])], 1, "0F0 1F0", ""))
    assert "lane 0, action 1: llm:1F0: this lane does not hold llm:1; lanes [1] do" in text


def test_a_stage_that_does_not_exist_is_refused() -> None:
    assert "llm:5F0: llm has stages 0 to 1" in refusal(literal([pipeline([0], [1])], 1, "0F0 5F0", ""))


def test_a_microbatch_out_of_range_is_refused() -> None:
    assert "llm:0F3: the step has microbatches 0 to 1" in refusal(literal([pipeline([0])], 2, "0F0 0F3"))


def test_a_transfer_of_a_window_is_refused() -> None:
    lanes = [" ".join(map(str, lane)) for lane in FORWARD_ONLY.lanes]
    text = refusal(with_lane(FORWARD_ONLY, 0, lanes[0].replace("0SEND_F0", "0SEND_F0-1")))
    assert "llm:0SEND_F0-1: a transfer carries one microbatch" in text


def test_a_transfer_of_what_no_lane_makes_is_refused() -> None:
    lanes = [" ".join(map(str, lane)) for lane in ENCODER.lanes]
    text = refusal(with_lane(ENCODER, 0, lanes[0].replace("llm:0F2", "vision->llm:0RECV_F2 llm:0F2")))
    assert "vision->llm:0RECV_F2 has nothing to transfer" in text


def test_a_transfer_between_stages_of_one_lane_is_refused() -> None:
    text = refusal(with_lane(V, 1, "1RECV_F0 1F0 1SEND_F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0"))
    assert "llm:1SEND_F0 has nothing to transfer" in text


def test_a_backward_of_a_frozen_module_is_refused() -> None:
    program = literal([replicated(0, has_backward=False)], 1, "vision:0F0 vision:0B0")
    assert "vision:0B0: this module has no backward" in refusal(program)


def test_both_kinds_of_backward_are_refused() -> None:
    text = refusal(literal([pipeline([0])], 1, "0F0 0I0 0W0 0B0"))
    assert "llm:0B0: a microbatch has either B, or I and W; llm:0I0" in text or "llm:0W0" in text


def test_w_before_its_i_and_i_without_w_are_refused() -> None:
    assert "uses the result of llm:0I0 before" in refusal(literal([pipeline([0])], 1, "0F0 0W0 0I0"))
    assert "needs llm:0W0, which is missing" in refusal(literal([pipeline([0])], 1, "0F0 0I0"))


def test_a_reduction_before_the_last_backward_is_refused() -> None:
    text = refusal(literal([pipeline([0])], 2, "0F0 0B0 0F1 0REDUCE_GRAD 0B1"))
    assert "llm:0REDUCE_GRAD reduces gradients that llm:0B1 (lane 0, action 4) has yet to add to" in text
    assert "done twice" in refusal(literal([pipeline([0])], 1, "0F0 0B0 0REDUCE_GRAD 0REDUCE_GRAD"))


def test_compute_on_sharded_parameters_is_refused() -> None:
    assert "put UNSHARD before" in refusal(literal([pipeline([0])], 1, "0F0 0UNSHARD 0B0 0RESHARD"))
    assert "put UNSHARD before" in refusal(literal([pipeline([0])], 1, "0UNSHARD 0F0 0RESHARD 0B0"))
    assert "already unsharded" in refusal(literal([pipeline([0])], 1, "0UNSHARD 0UNSHARD 0F0 0B0"))


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (literal([pipeline([0], [2])], 1, "0F0", ""), "lies on lanes [2] of 2"),
        (literal([pipeline([0]), pipeline([0])], 1, "0F0"), "the same name"),
        (literal([pipeline([0])], 1, "audio:0F0"), "audio:0F0: the topology has no audio"),
        (literal([pipeline([0])], 1, "0F0", edges=[("vision", "llm", 0)]), "no such modules"),
        (literal([pipeline([0]), replicated(0)], 1, "0F0", edges=[("vision", "llm", 1)]), "llm has no stage 1"),
        (literal([pipeline([0])], 0, ""), "at least one microbatch"),
    ],
)
def test_a_topology_that_makes_no_sense_is_refused(program: Program, fault: str) -> None:
    assert fault in refusal(program)


def test_the_fault_is_shown_in_the_grid_with_an_arrow() -> None:
    text = refusal(with_lane(TWO_STAGES, 1, "1RECV_F0 1B0 1F0 1SEND_B0 1RECV_F1 1F1 1B1 1SEND_B1"))
    assert text.splitlines()[1:] == [
        "lane 0  @1    llm:0F0       llm:0SEND_F0  llm:0F1  llm:0SEND_F1",
        "lane 1  @1    llm:1RECV_F0  [llm:1B0]     llm:1F0  llm:1SEND_B0",
        "                            ^^^^^^^^^ here",
    ]


def test_of_many_lanes_the_nearest_are_shown() -> None:
    module = pipeline(*([lane] for lane in range(20)))
    text = refusal(literal([module], 1, *("" for _ in range(20))))
    assert "lane 0: llm:0F0 is missing" in text
    assert "(12 more lanes)" in text
