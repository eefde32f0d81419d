"""Over slow links, what is hidden behind work shows as hidden, and what somebody waited for as exposed."""

from __future__ import annotations

import pytest

from hetsched.sim.overlap import Overlap
from tests.dist.context_cases import ContextCase
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.slow_links import context_bytes, overlap_of_a_step, ring_forward
from tests.dist.test_parity import layout

pytestmark = pytest.mark.alone

MS = 1_000_000
DELAY_MS = 100
FORWARD = "llm stages 0 and 1, forward"
PLAN = make_plan(vision=layout(), llm=layout(pp=2), world_size=2, schedule='pipeline = "gpipe"\nencoder = "stage0"')
CASE = ContextCase((400,), 2, "zigzag")


def forward_of(ranks: Pool, *work_s: float, delay_s: float = DELAY_MS / 1e3, is_mutant: bool = False) -> Overlap:
    """Of a step of four microbatches."""
    found = ranks.run(overlap_of_a_step, PLAN, work_s, delay_s, is_mutant, num_ranks=2)
    assert found[0] == found[1], "all ranks see the same"
    overlaps, report = found[0]
    assert report.context_bytes == 0
    (forward,) = (o for o in overlaps if o.name == FORWARD)
    assert (forward.num_messages, forward.num_bytes) == (4, 4 * 2 * 8 * 24 * 8)
    return forward


def check_hidden(forward: Overlap) -> None:
    """But for the first message, before which the second stage has nothing to do."""
    assert 0.8 * DELAY_MS * MS < forward.exposed_ns < 1.8 * DELAY_MS * MS
    assert forward.hidden > 0.6


def check_exposed(forward: Overlap) -> None:
    assert forward.exposed_ns > 0.8 * 4 * DELAY_MS * MS
    assert forward.hidden < 0.2


def test_messages_behind_work_are_hidden(ranks: Pool) -> None:
    found = forward_of(ranks, 0.02, 0.3)
    check_hidden(found)
    with pytest.raises(AssertionError):
        check_exposed(found)


def test_messages_that_a_stage_waits_for_are_exposed(ranks: Pool) -> None:
    found = forward_of(ranks, 0.3, 0.0)
    check_exposed(found)
    with pytest.raises(AssertionError):
        check_hidden(found)


def test_waits_that_nobody_marks_are_noticed(ranks: Pool) -> None:
    for work_s, check in (((0.3, 0.0), check_exposed), ((0.02, 0.3), check_hidden)):
        found = forward_of(ranks, *work_s, is_mutant=True)
        with pytest.raises(AssertionError):
            check(found)


def test_waiting_for_another_stages_work_is_not_the_messages_fault(ranks: Pool) -> None:
    found = forward_of(ranks, 0.3, 0.0, delay_s=0.0)
    assert found.exposed_ns < 0.5 * 4 * DELAY_MS * MS


def test_a_rings_messages_are_hidden_behind_its_steps(ranks: Pool) -> None:
    for passed, inner_wait_ns in ranks.run(ring_forward, CASE, 0.3, DELAY_MS / 1e3, num_ranks=2):
        (message,) = passed
        assert message.arrived_ns - message.posted_ns >= DELAY_MS * MS
        assert message.waited_ns == inner_wait_ns < 0.3 * DELAY_MS * MS


def test_a_rings_messages_without_work_to_hide_behind_are_exposed(ranks: Pool) -> None:
    for passed, inner_wait_ns in ranks.run(ring_forward, CASE, 0.0, DELAY_MS / 1e3, num_ranks=2):
        (message,) = passed
        assert message.waited_ns == inner_wait_ns
        # a busy machine hides some of it behind the step that comes first
        assert 0.4 * DELAY_MS * MS < message.waited_ns <= message.arrived_ns - message.posted_ns


@pytest.mark.parametrize("forced", ["ring", "ulysses"])
def test_the_bytes_of_context_parallel_attention_are_counted(ranks: Pool, forced: str) -> None:
    """Of 400 tokens, zigzag, one rank needs the other's first quarter, and the other both quarters in the middle."""
    case = ContextCase((400,), 2, "zigzag", heads=(4, 2), forced=forced)  # type: ignore[arg-type]
    sent = sum(ranks.run(context_bytes, case, num_ranks=2))
    row = case.head_dim * 8
    if forced == "ring":
        # keys and values forward, once more backward, and their gradients
        assert sent == 3 * (100 + 200) * 2 * 2 * row
    else:
        # of all rows, half of the heads of q, k, v and the output, and of their gradients
        assert sent == 2 * 400 * (4 + 2 + 2 + 4) // 2 * row
