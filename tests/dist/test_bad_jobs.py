"""Jobs that cannot go on: every rank says why, none is left waiting, and the others' data is still usable."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from hetsched.plan import Plan
from tests.dist.faulty import BAD, BATCH, DESCRIPTIONS, ITEMS, SAMPLES, Faulty, meet, start_with
from tests.dist.plans import make_plan
from tests.dist.pool import Pool

SIZES = dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.pp = 2", world_size=2)
SAID = {
    "more rows than patches": r"image \d+ has \d+ patches, 4 to a row, and cannot fill \d rows",
    "an image after the end": r"its \d rows at \d+ overlap another placeholder or end after the sample's \d+ tokens",
    "an image for no encoder": r"image \d+ is for 'audio', no encoder of the plan",
    "a placeholder too few": r"\d placeholder tokens for \d rows; they differ first at position \d+",
    "an id outside the vocabulary": r"token id 1000 is outside the vocabulary of 50",
    "a sample too short": r"ids is torch.int64 \[\d+\], not torch.int64 \[\d+\]",
    "an unreadable sample": "OSError: the disk is gone",
    "a NaN in an image": r"item \d+ of module vision: 'patches' holds NaN or infinity",
    "an image too short": r"item \d+ of module vision: 'patches' has shape \[\d+, 16\], but is described as \d+ long",
    "an image of other patches": r"item \d+ of module vision: a corrupt image: patches is .* not floating \[n, 16\]",
    "an unreadable image": r"item \d+ of module vision: OSError: the disk is gone",
}


def test_the_bad_image_is_that_of_one_sample() -> None:
    source = Faulty(None)
    bad = {p.item.key for p in source.describe(BAD).placeholders}
    assert bad and not any(p.item.key in bad for i in BATCH if i != BAD for p in source.describe(i).placeholders)


@pytest.mark.parametrize("fault", [*DESCRIPTIONS, *SAMPLES, *ITEMS])
@pytest.mark.parametrize("how", ["step", "evaluate", "ahead"])
def test_a_fault_in_the_data_is_a_data_error_on_every_rank_and_names_the_sample(
    ranks: Pool, fault: str, how: str
) -> None:
    met = ranks.run(meet, make_plan(**SIZES), fault, how, num_ranks=2)
    for each in met:
        assert each.error == "DataError"
        assert each.message == met[0].message
        assert re.search(rf"(^|: )sample {BAD}: .*{SAID[fault]}", each.message)
        assert math.isfinite(each.loss_after)


def test_a_plan_for_more_ranks_than_were_launched_is_refused_by_each(ranks: Pool) -> None:
    plan = make_plan(**SIZES)
    said = ranks.run(start_with, [plan] * 3, num_ranks=3)
    assert ranks.run(start_with, [plan] * 2, num_ranks=2) == ["started"] * 2
    # Said alike by all, so that a launcher says it once.
    assert len(set(said)) == 1
    for message in said:
        assert message.startswith("PlanError: the plan is for 2 ranks, and the job has 3\n")
        assert "field world_size" in message
        assert "fix: launch as many as the plan has, or write world_size = 3" in message


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_another_plan_on_one_rank_is_named_by_every_rank(ranks: Pool, odd: int) -> None:
    usual = make_plan(vision="first_rank = 0", llm="first_rank = 1\nlayout.dp = 2", world_size=3)
    check_odd(ranks, usual, replace(usual, seed=4), odd)


def test_another_plan_on_one_rank_is_named_even_if_it_is_for_another_world(ranks: Pool) -> None:
    usual = make_plan(vision="first_rank = 0", llm="first_rank = 1\nlayout.dp = 2", world_size=3)
    check_odd(ranks, usual, make_plan(vision="first_rank = 0", llm="first_rank = 1", world_size=2), 1)


def check_odd(ranks: Pool, usual: Plan, other: Plan, odd: int) -> None:
    said = ranks.run(start_with, [other if rank == odd else usual for rank in range(3)], num_ranks=3)
    assert other.digest != usual.digest
    message = f"rank {odd} has another plan: its digest is {other.digest}, the others' is {usual.digest}"
    assert said == [f"JobError: {message}"] * 3
