"""A timeline as text, on pictures small enough to be checked by eye."""

from __future__ import annotations

import pytest

from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.program import Program
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


def picture(program: Program, *, width: int, **costs: int) -> list[str]:
    reduced = lower_gradient_reduction(lower_transfers(program), trained=frozenset({"llm"}))
    return draw(simulate(reduced, Costs.constant(**costs)), width=width, unit=NANOSECOND).splitlines()


def test_one_f_one_b() -> None:
    assert picture(ONE_F_ONE_B, width=36, F=1, B=2) == [
        "time    0                   5",
        "lane 0  F0-|F1-|........B0=====|....B1=====|   33% idle, 2 live",
        "lane 1  ....F0-|B0=====|F1-|B1=====|........   33% idle, 1 live",
        "step 9 ns, idle 33.3% of lane time, 0.0% above the lower bound",
    ]


@pytest.mark.parametrize(
    ("width", "lanes"),
    [
        (36, ["vF0|F0-|............B0=====|vB0====|", "vF0|....F0-|B0=====|........vB0====|"]),
        (9, ["vF...B0vB", "v.FB0..vB"]),
        (3, ["FBv", "FBv"]),
    ],
)
def test_an_encoder_is_told_by_its_letter_in_any_width(width: int, lanes: list[str]) -> None:
    lines = picture(WITH_ENCODER, width=width, F=1, B=2)
    assert [line[8 : 8 + width] for line in lines[1:3]] == lanes
    assert lines[-1] == "step 9 ns, idle 33.3% of lane time, 0.0% above the lower bound; v is vision"
