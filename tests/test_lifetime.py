"""What a microbatch keeps is let go after the last action that touches it, and not before."""

from __future__ import annotations

import pytest

from hetsched.lower.lifetime import last_uses
from hetsched.schedule.action import parse_action


def uses(*texts: str) -> dict[int, set[tuple[str, int, int]]]:
    return {place: set(keys) for place, keys in last_uses([parse_action(text) for text in texts]).items()}


def kept(place: int, key: tuple[str, int, int], *texts: str) -> bool:
    """Whether a key is still there when an action of the list begins."""
    return not any(key in keys for at, keys in uses(*texts).items() if at < place)


def test_an_encoder_keeps_its_rows_until_the_backward_and_nothing_after() -> None:
    texts = ("vision:0F0", "vision->llm:0SEND_F0", "vision->llm:0RECV_B0", "vision:0B0", "vision:0F1")
    assert ("vision", 0, 0) in uses(*texts)[3]
    assert kept(3, ("vision", 0, 0), *texts)


def test_a_frozen_encoder_keeps_its_rows_until_they_are_sent() -> None:
    assert ("vision", 0, 0) in uses("vision:0F0", "vision->llm:0SEND_F0", "llm:0F0")[1]


def test_a_gradient_is_kept_until_it_is_sent_over_every_edge() -> None:
    texts = ("llm:0F0", "llm:0B0", "audio->llm:0SEND_B0", "vision->llm:0SEND_B0", "llm:0F1")
    assert ("llm", 0, 0) in uses(*texts)[3]


@pytest.mark.parametrize("backward", ["B", "I"])
def test_a_stage_is_kept_for_its_neighbor_on_the_same_lane(backward: str) -> None:
    texts = ("llm:0F0", "llm:1F0", f"llm:1{backward}0", f"llm:0{backward}0")
    assert kept(3, ("llm", 1, 0), *texts) and kept(3, ("llm", 0, 0), *texts)
    assert uses(*texts)[3] >= {("llm", 0, 0), ("llm", 1, 0)}


def test_windows_and_fused_pairs_touch_all_their_microbatches() -> None:
    texts = ("vision:0F0-1", "(llm:0F1;llm:0B0)OVERLAP_F_B", "vision:0B0-1", "llm:0B1")
    assert uses(*texts)[2] >= {("vision", 0, 0), ("vision", 0, 1)}
    assert ("llm", 0, 0) in uses(*texts)[1] and ("llm", 0, 1) in uses(*texts)[3]
