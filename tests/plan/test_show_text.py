"""A timeline as text, on pictures small enough to be checked by eye."""

from __future__ import annotations

import pytest

from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable
from hetsched.show.text import draw
from hetsched.show.unit import NANOSECOND
from hetsched.sim.costs import Costs
from hetsched.sim.simulate import simulate
from tests.plan.literal import literal, pipeline, replicated

ONE_F_ONE_B = literal([pipeline([0], [1])], 2, "0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
WITH_ENCODER = literal(
    [replicated(0, 1), pipeline([0], [1])],
    1,
    "vision:0F0 0F0 0B0 vision:0B0",
    "vision:0F0 1F0 1B0 vision:0B0",
    edges=[("vision", "llm", 0)],
)
KEY = (
    "key: F0- forward of microbatch 0, B= backward, | end, . idle; "
    "live: most microbatches of llm held at once, F to end of B"
)


def picture(program: Program, *, width: int, **costs: int) -> list[str]:
    reduced = lower_gradient_reduction(lower_transfers(program), trained=frozenset({"llm"}))
    return draw(simulate(reduced, Costs.constant(**costs)), width=width, unit=NANOSECOND).splitlines()


def test_one_f_one_b() -> None:
    assert picture(ONE_F_ONE_B, width=36, F=1, B=2) == [
        "time    0                   5",
        "lane 0  F0-|F1-|........B0=====|....B1=====|   33% idle, 2 live",
        "lane 1  ....F0-|B0=====|F1-|B1=====|........   33% idle, 1 live",
        "step 9 ns simulated, idle 33.3% of lane time, 0.0% above the lower bound",
        KEY,
    ]


@pytest.mark.parametrize(
    ("width", "lanes"),
    [
        (36, ["vF0|F0-|............B0=====|vB0====|", "vF0|....F0-|B0=====|........vB0====|"]),
        (9, ["vF...B0v=", "v.FB0..v="]),
        (3, ["FBv", "FBv"]),
    ],
)
def test_an_encoder_is_told_by_its_letter_in_any_width(width: int, lanes: list[str]) -> None:
    lines = picture(WITH_ENCODER, width=width, F=1, B=2)
    assert [line[8 : 8 + width] for line in lines[1:3]] == lanes
    assert lines[3] == "step 9 ns simulated, idle 33.3% of lane time, 0.0% above the lower bound; v is vision"
    assert lines[-1] == KEY


@pytest.mark.parametrize(("width", "num_narrow"), [(36, None), (18, 2), (9, 6), (3, 8)])
def test_a_picture_that_cannot_be_read_says_what_to_do(width: int, num_narrow: int | None) -> None:
    said = f"{num_narrow} of 8 boxes are too narrow for their names: try a larger --width, or --format html"
    assert picture(WITH_ENCODER, width=width, F=1, B=2)[4:-1] == ([] if num_narrow is None else [said])


def test_names_that_fit_in_two_columns_can_be_read() -> None:
    assert picture(ONE_F_ONE_B, width=18, F=1, B=2)[1:] == [
        "lane 0  F0F1....B0=|..B1=|   33% idle, 2 live",
        "lane 1  ..F0B0=|F1B1=|....   33% idle, 1 live",
        "step 9 ns simulated, idle 33.3% of lane time, 0.0% above the lower bound",
        KEY,
    ]


def test_a_stage_is_not_read_as_the_microbatch_of_the_action_before_it() -> None:
    """A forward in one column, and a backward with room for its name right after it."""
    program = literal([pipeline([0], [0])], 2, "0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1")
    assert picture(program, width=20, F=1, B=4)[1][8:28] == "FFB==|0B0|FFB==|0B1|"
    assert picture(program, width=40, F=1, B=4)[1][8:48] == "F-F-1B0====|0B0====|F-F-1B1====|0B1====|"


def test_the_letter_of_an_encoder_is_not_read_as_that_of_the_name_behind_it() -> None:
    """An encoder's forward in one column, and the LLM's right after it."""
    program = literal([replicated(0), pipeline([0])], 1, "vision:0F0 0F0 0B0 vision:0B0", edges=[("vision", "llm", 0)])
    lowered = lower_transfers(program)
    costs = Costs(ActionTable.parse({"vision:F": 1, "vision:B": 2, "llm:F": 3, "llm:B": 6}))
    for width, row in ((12, "v|F0B0===|v="), (24, "v-F0---|B0=========|vB0|")):
        assert draw(simulate(lowered, costs), width=width).splitlines()[1][8 : 8 + width] == row


def test_every_encoder_has_a_letter_of_its_own() -> None:
    names = ["audio_a", "audio_b", "video", "vision_low", "vision_transformer"]
    program = literal(
        [*(replicated(0, name=name) for name in names), pipeline([0])],
        1,
        " ".join([*(f"{name}:0F0" for name in names), "0F0 0B0", *(f"{name}:0B0" for name in names)]),
        edges=[(name, "llm", 0) for name in names],
    )
    lines = picture(program, width=18, F=1, B=2)
    assert lines[1][8:26] == "auvisFB0a=u=v=i=s="
    letters = "a is audio_a; u is audio_b; v is video; i is vision_low; s is vision_transformer"
    assert lines[2].endswith(f"above the lower bound; {letters}")


def test_sentences_are_wrapped_where_a_terminal_ends() -> None:
    timeline = simulate(lower_transfers(ONE_F_ONE_B), Costs.constant(F=1, B=2))
    plain = draw(timeline, width=53).splitlines()
    lines = draw(timeline, width=53, columns=80).splitlines()
    assert len(plain) < len(lines) and max(map(len, lines)) <= 80 < max(map(len, plain))
    assert " ".join(line.strip() for line in lines[3:]) == " ".join(plain[3:])


def test_the_key_names_a_sum_of_gradients_that_takes_time() -> None:
    assert "R= gradients summed" not in picture(ONE_F_ONE_B, width=36, F=1, B=2)[-1]
    lines = picture(ONE_F_ONE_B, width=33, F=1, B=2, REDUCE_GRAD=2)
    assert lines[1].split()[2].endswith("|R====|") and ", R= gradients summed, | end" in lines[-1]


def test_the_key_names_what_occurs_and_whose_microbatches_are_live() -> None:
    program = literal(
        [replicated(0), pipeline([0], [0])],
        2,
        "vision:0F0-1 0F0 1F0 (llm:0F1;llm:1B0)OVERLAP_F_B 0B0 1F1 1I1 1W1 0I1 0W1 vision:0B0-1",
        edges=[("vision", "llm", 0)],
    )
    assert picture(program, width=240, F=1, B=2, I=1, W=1)[-1] == (
        "key: 1F0- forward of microbatch 0 in stage 1, B= backward, I= input gradient, W~ weight gradient, "
        "0-1 a window of microbatches, a&b a fused pair, | end, . idle; "
        "live: most (stage, microbatch) pairs of llm held at once, F to end of B or W"
    )
