"""Position ids: M-RoPE on cases computed by hand, and against the rule applied token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetsched.layout.positions import GridRun, mrope_positions, packed_mrope_positions, text_positions


def test_text_positions_begin_anew_in_each_sequence() -> None:
    assert text_positions([3, 0, 2]).tolist() == [0, 1, 2, 0, 1]
    assert text_positions([]).tolist() == []


def test_text_alone_has_equal_positions() -> None:
    assert mrope_positions(3, []).tolist() == [[0, 1, 2]] * 3


def test_several_images_by_hand() -> None:
    # Two tokens of text, an image of 2 x 3 rows, one token, an image of 1 x 2 rows, two tokens.
    positions = mrope_positions(13, [GridRun(2, 1, 2, 3), GridRun(9, 1, 1, 2)])
    # The first image begins at 2 and spans max(1, 2, 3) = 3, so the text behind it is at 5; the second begins at 6.
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 8, 9],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 8, 9],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9],
    ]


def test_adjacent_images_and_a_clip_by_hand() -> None:
    # An image of 2 x 2 rows at once, an image of 1 x 1, a clip of 3 frames of 1 x 2, one token.
    positions = mrope_positions(12, [GridRun(0, 1, 2, 2), GridRun(4, 1, 1, 1), GridRun(5, 3, 1, 2)])
    assert positions.tolist() == [
        [0, 0, 0, 0, 2, 3, 3, 4, 4, 5, 5, 6],
        [0, 0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 6],
        [0, 1, 0, 1, 2, 3, 4, 3, 4, 3, 4, 6],
    ]


def test_each_sample_of_a_packed_sequence_begins_at_zero() -> None:
    packed = packed_mrope_positions([2, 3, 0], [[], [GridRun(1, 1, 1, 2)], []])
    assert packed.tolist() == [[0, 1, 0, 1, 1], [0, 1, 0, 1, 1], [0, 1, 0, 1, 2]]
    assert packed_mrope_positions([], []).shape == (3, 0)


def token_by_token(num_tokens: int, grids: list[GridRun]) -> list[tuple[int, int, int]]:
    """The rule as Qwen2-VL states it: text goes on from the largest position so far plus one."""
    positions: list[tuple[int, int, int]] = []

    def following() -> int:
        return max((max(p) for p in positions), default=-1) + 1

    at = {grid.start: grid for grid in grids}
    while len(positions) < num_tokens:
        grid = at.get(len(positions))
        base = following()
        if grid is None:
            positions.append((base, base, base))
            continue
        for frame in range(grid.frames):
            for row in range(grid.height):
                positions.extend((base + frame, base + row, base + column) for column in range(grid.width))
    return positions


@st.composite
def samples(draw: st.DrawFn) -> tuple[int, list[GridRun]]:
    grids: list[GridRun] = []
    token = 0
    for _ in range(draw(st.integers(0, 4))):
        token += draw(st.integers(0, 5))
        grids.append(GridRun(token, *(draw(st.integers(1, 4)) for _ in range(3))))
        token += grids[-1].num_rows
    return token + draw(st.integers(0, 5)), grids


@given(samples())
def test_positions_follow_the_rule_token_by_token(sample: tuple[int, list[GridRun]]) -> None:
    num_tokens, grids = sample
    assert [tuple(p) for p in mrope_positions(num_tokens, grids).T.tolist()] == token_by_token(num_tokens, grids)


@pytest.mark.parametrize(
    ("grids", "words"),
    [
        ([GridRun(2, 1, 2, 2)], r"grids\[0\] = GridRun\(start=2, .*within \[0, 5\)"),
        ([GridRun(0, 1, 1, 2), GridRun(1, 1, 1, 1)], r"grids\[1\] = .*within \[2, 5\)"),
        ([GridRun(0, 0, 1, 1)], r"grids\[0\] = .*frames=0"),
    ],
)
def test_a_grid_that_does_not_fit_is_named(grids: list[GridRun], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mrope_positions(5, grids)
