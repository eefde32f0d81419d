"""torch's schedule CSV: what is read is what was written, and nothing else is read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.check.validate import validate
from hetsched.cli.source import complete
from hetsched.errors import ScheduleError
from hetsched.exchange.torch_order import check_torch_order
from hetsched.exchange.torch_read import program_from_torch_csv
from hetsched.exchange.torch_write import program_to_torch_csv
from hetsched.layout.placement import ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.program import Program
from hetsched.schedule.registry import PIPELINES
from tests.plan.literal import literal, pipeline, replicated
from tests.programs import training_program

V_SHAPE = (
    "0F0,0F1,,3F0,3I0,3W0,3F1,(0F2;3B1)OVERLAP_F_B,,0B0,3F2,3B2,0B1,0B2\r\n"
    "1F0,2F0,1F1,2F1,1F2,2B0,1B0,2F2,2B1,1B1,2B2,1B2\r\n"
)


def test_a_file_gives_the_program_that_is_written_in_it() -> None:
    program = program_from_torch_csv(V_SHAPE)
    assert program == literal(
        [pipeline([0], [1], [1], [0])],
        3,
        "0F0 0F1 3F0 3I0 3W0 3F1 (llm:0F2;llm:3B1)OVERLAP_F_B 0B0 3F2 3B2 0B1 0B2",
        "1F0 2F0 1F1 2F1 1F2 2B0 1B0 2F2 2B1 1B1 2B2 1B2",
    )
    validate(lower_transfers(program))


def test_transfers_and_collectives_are_read_too() -> None:
    program = program_from_torch_csv(
        "0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0,0REDUCE_GRAD,0RESHARD\n1UNSHARD,1RECV_F0,1F0,1B0,1SEND_B0,1REDUCE_GRAD\n"
    )
    assert str(program.lanes[1][1]) == "llm:1RECV_F0" and str(program.lanes[0][-1]) == "llm:0RESHARD"
    validate(program)


@pytest.mark.parametrize(
    "text", ["0F0,0B0", "0F0,0B0\n", "0F0,0B0\r\n", ",0F0,,0B0,,\n", " 0F0, 0B0 \n", '"0F0","0B0"\n']
)
def test_blank_cells_line_ends_and_spaces_around_a_cell_mean_nothing(text: str) -> None:
    assert program_from_torch_csv(text) == literal([pipeline([0])], 1, "0F0 0B0")


SHAPES = st.tuples(st.sampled_from(sorted(PIPELINES)), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3))


def scheduled(shape: tuple[str, int, int, int]) -> Program:
    """The program of (schedule, lanes, microbatches, virtual stages where the schedule leaves the choice)."""
    name, num_lanes, num_microbatches, num_virtual = shape
    num_virtual = PIPELINES[name].num_virtual or num_virtual
    lanes = [PIPELINES[name].order.pipeline_rank(stage, pp=num_lanes) for stage in range(num_virtual * num_lanes)]
    topology = Topology(num_lanes, (ModuleOnLanes("llm", tuple(((lane,),) for lane in lanes)),))
    return training_program(topology, sink="llm", pipeline=name, encoder="stage0", num_microbatches=num_microbatches)


@given(shape=SHAPES)
def test_what_is_written_reads_back(shape: tuple[str, int, int, int]) -> None:
    program = scheduled(shape)
    assert program_from_torch_csv(program_to_torch_csv(program)) == program
    assert program_from_torch_csv(program_to_torch_csv(lower_transfers(program))) == program


@given(shape=SHAPES)
def test_what_is_written_with_transfers_reads_back(shape: tuple[str, int, int, int]) -> None:
    program = lower_transfers(scheduled(shape))
    try:
        check_torch_order(program)
    except ScheduleError:
        with pytest.raises(ScheduleError, match="messages arrive in the order sent"):
            program_to_torch_csv(program, with_transfers=True)
    else:
        assert program_from_torch_csv(program_to_torch_csv(program, with_transfers=True)) == program


@given(shape=SHAPES, data=st.data())
def test_a_file_with_one_character_changed_is_refused_or_says_something_else(
    shape: tuple[str, int, int, int], data: st.DataObject
) -> None:
    program = scheduled(shape)
    text = program_to_torch_csv(program)
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from('0189FBIWX,;()-:"\n\r\0 é٣').filter(lambda c: c != text[place]))
    changed = text[:place] + character + text[place + 1 :]
    try:
        sound = complete(program_from_torch_csv(changed))
    except ScheduleError:
        return
    # Line ends and blanks are all that may be written in more than one way.
    is_blank = {text[place], character} <= set("\r\n ,")
    assert is_blank or complete(program) != sound


@given(st.text(alphabet='0123FBIW,;()_-ENDRCV\n"\r ', max_size=40) | st.text(max_size=20))
def test_any_text_is_a_program_or_a_schedule_error(text: str) -> None:
    try:
        program = program_from_torch_csv(text)
    except ScheduleError:
        return
    assert program_from_torch_csv("\n".join(",".join(map(cell, lane)) for lane in program.lanes)) == program


def cell(action: object) -> str:
    return str(action).replace("llm:", "")


GARBAGE = {
    "0BOGUS": "'0BOGUS'",
    "0F1x": "'0F1x'",
    "0F-1": "'0F-1'",
    "-1F0": "'-1F0'",
    "0F": "'0F'",
    "F0": "'F0'",
    "0f0": "'0f0'",
    "0F01": "'0F01'",
    "00F1": "'00F1'",
    "0F 1": "'0F 1'",
    "0F1.0": "'0F1.0'",
    "0F0-1": "'0F0-1'",
    "llm:0F1": "'llm:0F1'",
    "0F٣": "'0F٣'",
    "0F" + "9" * 5000: "is not an action",
    "0F1 1F1": "'0F1 1F1'",
    "0UNSHARD1": "'0UNSHARD1'",
    "0SEND_F": "'0SEND_F'",
    "0OVERLAP_F_B1": "'0OVERLAP_F_B1'",
    "(0F1;0B0)": "'(0F1;0B0)'",
    "(0F1;0B0)OVERLAP": "'(0F1;0B0)OVERLAP'",
    "(0B0;0F1)OVERLAP_F_B": "'(0B0;0F1)OVERLAP_F_B'",
    "(0F1;0I0)OVERLAP_F_B": "'(0F1;0I0)OVERLAP_F_B'",
    "(0F1)OVERLAP_F_B": "'(0F1)OVERLAP_F_B'",
    "()OVERLAP_F_B": "'()OVERLAP_F_B'",
    "(0F1;0B0;0F2)OVERLAP_F_B": "'(0F1;0B0;0F2)OVERLAP_F_B'",
    "((0F1;0B0)OVERLAP_F_B;0B0)OVERLAP_F_B": "is not an action",
    "\0": r"'\x00'",
    "\ufeff0F1": r"'\ufeff0F1'",
    "None": "'None'",
}


@pytest.mark.parametrize("text", GARBAGE, ids=[repr(text)[:24] for text in GARBAGE])
def test_garbage_in_a_cell_is_named_by_row_and_column(text: str) -> None:
    with pytest.raises(ScheduleError, match=rf"^row 2, column 3: .*{re.escape(GARBAGE[text])}"):
        program_from_torch_csv(f"0F0,0B0\n1F0,,{text},1B0\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("\n", "row 1: no actions"),
        (",,\n", "row 1: no actions"),
        ("0F0,0B0\n\n1F0,1B0\n", "row 2: no actions"),
        ("0F0,0B0\n\n", "row 2: no actions"),
        ('0F0,0B0\n"1F0,1B0\n', "row 2: not CSV"),
        ('0F0,0B0\n"1F0"x,1B0\n', "row 2: not CSV"),
        ("0F0,0B0\n1F0,0F1\n", "row 2, column 2: llm:0F1: stage 0 is in two rows; llm:0F0 is in row 1, column 1"),
        ("0F0,0B0\n2F0,2B0\n", "row 2, column 1: llm:2F0, but the file has no action of stage 1"),
        ("0F0,0F7,0B0\n", "row 1, column 2: llm:0F7, but the file has no action on microbatch 1"),
        ("0F0,0F999999999,0B0\n", "row 1, column 2: llm:0F999999999, but"),
        ("999999999F0\n", "row 1, column 1: llm:999999999F0, but the file has no action of stage 0"),
        ("0UNSHARD\n", "row 1, column 1: the file has no action on a microbatch"),
    ],
)
def test_a_file_that_is_no_program_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ScheduleError, match=f"^{re.escape(said)}"):
        program_from_torch_csv(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0F0,0B0\n1F0\n", "llm:1F0 needs llm:1B0, which is missing"),
        ("0F0,0B0\n1B0,1F0\n", "llm:1B0 is a backward before its forward"),
        ("0F0,0F0,0B0\n", "llm:0F0 is done twice"),
        ("0F0,0F1,0B0,0B1\n1F1,1B1,1F0,1B0\n", "llm:0RECV_B0 is out of order"),
        ("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", "wait"),
        ("0F0,0SEND_F0,0RECV_B0,0B0\n1F0,1B0,1SEND_B0\n", "llm:1RECV_F0"),
    ],
)
def test_a_program_that_is_not_sound_is_read_and_then_refused(text: str, said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        complete(program_from_torch_csv(text))


def with_encoder(*lanes: str, encoder: ModuleOnLanes | None = None, edge_stage: int = 0) -> Program:
    modules = [pipeline([0], [1]), replicated(0) if encoder is None else encoder]
    return literal(modules, 1, *lanes, edges=[("vision", "llm", edge_stage)])


ENCODER_FIRST = ("vision:0F0 0F0 0B0 vision:0B0", "1F0 1B0")


def test_an_encoder_on_the_first_lane_becomes_the_first_stage() -> None:
    program = with_encoder(*ENCODER_FIRST)
    assert program_to_torch_csv(program) == "0F0,1F0,1B0,0B0\r\n2F0,2B0\r\n"
    with_transfers = program_to_torch_csv(lower_transfers(program), with_transfers=True)
    assert with_transfers == "0F0,1F0,1SEND_F0,1RECV_B0,1B0,0B0\r\n2RECV_F0,2F0,2B0,2SEND_B0\r\n"
    validate(program_from_torch_csv(with_transfers))


def test_an_encoder_on_its_own_lane_becomes_the_first_stage_of_the_last_row() -> None:
    program = with_encoder("0F0 0B0", "1F0 1B0", "vision:0F0 vision:0B0", encoder=replicated(2))
    assert program_to_torch_csv(program) == "1F0,1B0\r\n2F0,2B0\r\n0F0,0B0\r\n"
    with_transfers = program_to_torch_csv(lower_transfers(program), with_transfers=True)
    assert with_transfers.splitlines()[2] == "0F0,0SEND_F0,0RECV_B0,0B0"
    validate(program_from_torch_csv(with_transfers))


REFUSED = {
    "runs on lanes [0, 1]": with_encoder(
        "vision:0F0 0F0 0B0 vision:0B0", "vision:0F0 1F0 1B0 vision:0B0", encoder=replicated(0, 1)
    ),
    "enters llm at stage 1": with_encoder(*ENCODER_FIRST, edge_stage=1),
    "has no backward of microbatch 0 (a frozen module?)": with_encoder(
        "vision:0F0 0F0 0B0", "1F0 1B0", encoder=replicated(0, has_backward=False)
    ),
    "lane 2 has nothing to do": with_encoder(*ENCODER_FIRST, ""),
    "stage 0 leaves out microbatch 0": with_encoder("0F0 0B0", "1F0 1B0"),
    "2 modules with no boundary": literal([pipeline([0]), replicated(0)], 1, "vision:0F0 0F0 0B0 vision:0B0"),
    "3 modules with vision->llm, audio->llm": literal(
        [pipeline([0]), replicated(0), replicated(0, name="audio")],
        1,
        "",
        edges=[("vision", "llm", 0), ("audio", "llm", 0)],
    ),
    "2 modules with vision->llm, llm->vision": literal(
        [pipeline([0]), replicated(0)], 1, "", edges=[("vision", "llm", 0), ("llm", "vision", 0)]
    ),
    "vision:0F0-1 is a window": literal(
        [pipeline([0]), replicated(0)],
        2,
        "vision:0F0-1 0F0 0B0 0F1 0B1 vision:0B0-1",
        edges=[("vision", "llm", 0)],
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_torch_cannot_run_is_not_written(said: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(said.replace("vision:0F0-1 is", "llm:0F0-1 is"))):
        program_to_torch_csv(REFUSED[said])
