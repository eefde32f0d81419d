"""Actions print and parse as inverses; nothing else parses."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.errors import ScheduleError
from hetsched.schedule.action import Action, Kind, act, overlap, parse_action

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,7}", fullmatch=True)
EDGES = st.tuples(NAMES, NAMES).map("->".join)
NUMBERS = st.integers(0, 10**6)
COMPUTE = st.sampled_from([Kind.F, Kind.B, Kind.I, Kind.W])
TRANSFERS = st.sampled_from([kind for kind in Kind if kind.is_transfer])
COLLECTIVES = st.sampled_from([kind for kind in Kind if kind.is_collective])


@st.composite
def on_microbatches(draw: st.DrawFn, names: st.SearchStrategy[str], kinds: st.SearchStrategy[Kind]) -> Action:
    """An action on one microbatch or a window of several."""
    first, more = draw(NUMBERS), draw(st.integers(0, 3))
    return act(draw(names), draw(NUMBERS), draw(kinds), first, first + more)


collectives = st.builds(act, NAMES, NUMBERS, COLLECTIVES)
pairs = st.builds(overlap, on_microbatches(NAMES, st.just(Kind.F)), on_microbatches(NAMES, st.just(Kind.B)))
actions = on_microbatches(NAMES, COMPUTE) | on_microbatches(NAMES | EDGES, TRANSFERS) | collectives | pairs


@given(actions)
def test_parsing_inverts_printing(action: Action) -> None:
    assert parse_action(str(action)) == action


@given(st.text("llm:vision->0123456789FBIW-();SENDRCV_OAPUGT \n٣", max_size=24))
def test_what_parses_is_the_printed_form(text: str) -> None:
    check_strict(text)


@given(actions, st.data())
def test_one_character_off_is_another_action_or_none(action: Action, data: st.DataObject) -> None:
    text = str(action)
    place = data.draw(st.integers(0, len(text)))
    other = data.draw(st.sampled_from(["", *" 0-;:F_BIW>٣"]))
    changed = text[:place] + other + text[place + data.draw(st.integers(0, 1)) :]
    check_strict(changed)
    if changed != text:
        assert not parses_as(changed, action)


def check_strict(text: str, parse: Callable[[str], Action] = parse_action) -> None:
    try:
        action = parse(text)
    except ScheduleError:
        return
    assert str(action) == text


@pytest.mark.parametrize("text", ["llm:2F0 ", "llm:02F0", "LLM:2F0"])
def test_a_lenient_parser_fails_that_check(text: str) -> None:
    check_strict(text)
    with pytest.raises(AssertionError):
        check_strict(text, lambda text: parse_action(text.strip().replace("02", "2").replace("LLM", "llm")))


def parses_as(text: str, action: Action) -> bool:
    try:
        return parse_action(text) == action
    except ScheduleError:
        return False


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("llm:2F0", act("llm", 2, Kind.F, 0)),
        ("vision:0F0-3", act("vision", 0, Kind.F, 0, 3)),
        ("vision->llm:0SEND_F3", act("vision->llm", 0, Kind.SEND_F, 3)),
        ("llm:0REDUCE_GRAD", act("llm", 0, Kind.REDUCE_GRAD)),
        ("(llm:0F4;llm:7B0)OVERLAP_F_B", overlap(act("llm", 0, Kind.F, 4), act("llm", 7, Kind.B, 0))),
    ],
)
def test_actions_print_as_documented(text: str, action: Action) -> None:
    assert str(action) == text and parse_action(text) == action


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not an action"),
        ("2F0", "not an action"),
        ("llm:F0", "not an action"),
        ("llm:2f0", "not an action"),
        ("llm:2F0 ", "not an action"),
        ("llm:2F0\n", "not an action"),
        ("llm:2X0", "not an action"),
        ("llm:-1F0", "not an action"),
        ("llm:2OVERLAP_F_B0", "not an action"),
        ("a->b->c:0SEND_F0", "not an action"),
        ("llm:2F", "F needs a microbatch"),
        ("llm:2SEND_B", "SEND_B needs a microbatch"),
        ("llm:2REDUCE_GRAD1", "REDUCE_GRAD takes no microbatch"),
        ("vision->llm:0F0", "only transfers happen on a boundary, not F"),
        ("vision->llm:0REDUCE_GRAD", "only transfers happen on a boundary"),
        ("llm:2F3-3", "a window ends after it begins"),
        ("llm:2F3-1", "a window ends after it begins"),
        ("llm:02F0", "not in canonical form; write 'llm:2F0'"),
        ("llm:2F00", "not in canonical form; write 'llm:2F0'"),
        ("llm:٢F0", "not in canonical form; write 'llm:2F0'"),
        ("(llm:0B4;llm:7F0)OVERLAP_F_B", "a forward and a full backward, in that order"),
        ("(llm:0F4;llm:7I0)OVERLAP_F_B", "a forward and a full backward, in that order"),
        ("(llm:0F4)OVERLAP_F_B", "not an action"),
        ("(llm:0F4;llm:7B0)F", "not an action"),
        ("(llm:0F4;llm:7B00)OVERLAP_F_B", "not in canonical form; write 'llm:7B0'"),
    ],
)
def test_what_is_no_action_is_refused_with_the_reason(text: str, fault: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(fault)):
        parse_action(text)


def test_every_kind_is_of_one_sort() -> None:
    for kind in Kind:
        assert [kind.is_compute, kind.is_transfer, kind.is_collective].count(True) == 1


def test_an_action_lists_its_microbatches_and_its_parts() -> None:
    forward, backward = act("llm", 0, Kind.F, 4), act("llm", 7, Kind.B, 0)
    assert list(act("llm", 0, Kind.F, 2, 4).microbatches) == [2, 3, 4]
    assert list(act("llm", 0, Kind.UNSHARD).microbatches) == []
    assert list(overlap(forward, backward).flat()) == [forward, backward] and list(forward.flat()) == [forward]
