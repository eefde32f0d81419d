"""What ranks returned of samples, put together again."""

from __future__ import annotations

import numpy as np
import torch

from hetsched.runtime.outputs import Piece, join_pieces


def piece(sample: int, positions: list[int]) -> Piece:
    """Rows that say whose they are."""
    return Piece(sample, np.array(positions), torch.tensor([[sample, position] for position in positions]))


def test_rows_of_a_sample_that_several_ranks_had_are_in_the_order_of_their_positions() -> None:
    pieces = [piece(7, [4, 5, 0]), piece(3, [0, 1]), piece(7, [2, 1, 3])]
    outputs = join_pieces(pieces)
    assert outputs.keys() == {3, 7}
    for sample, length in ((3, 2), (7, 6)):
        assert outputs[sample].tolist() == [[sample, position] for position in range(length)]


def test_a_sample_that_was_in_the_batch_twice_has_its_rows_once() -> None:
    pieces = [piece(7, [0, 1, 2]), piece(3, [0]), piece(7, [2]), piece(7, [0, 1])]
    outputs = join_pieces(pieces)
    assert outputs[7].tolist() == [[7, 0], [7, 1], [7, 2]] and outputs[3].tolist() == [[3, 0]]
