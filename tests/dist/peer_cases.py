"""Messages and rooms for the tests of the peer transport: the same on every rank, from their numbers alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hetsched.kernels.put.message import MOST_COPIES
from hetsched.layout.rank_share import Piece
from hetsched.runtime.exchange import Channel

HIDDEN, MAX_ROWS = 136, 200
PER_STEP = 10
"""Transfers of an inbox in a step."""
MOST_IN_USE = 3
CHANNELS = (Channel(0, HIDDEN, torch.float32, ""), Channel(1, HIDDEN, torch.bfloat16, ""))


@dataclass(frozen=True)
class Sent:
    """A message: ``number`` of a step, over one wire."""

    tag: int
    source: int
    destination: int
    step: int
    number: int

    def rows(self) -> Tensor:
        """Random, on the host; the same on both ranks."""
        seed = random.Random(f"{self}").randrange(1 << 40)
        rows = torch.randn(MAX_ROWS, HIDDEN, generator=torch.Generator().manual_seed(seed))
        return rows.to(CHANNELS[self.tag].dtype)


def events_of(inbox: tuple[int, int], step: int, *, in_turns: bool) -> list[tuple[int, bool]]:
    """In which order an inbox's rooms are taken and given back: any, or all taken before any is given back."""
    if in_turns:
        return [(n, is_end) for is_end in (False, True) for n in range(MOST_IN_USE)]
    draw, taken, events = random.Random(f"{inbox} {step}"), [], []
    for n in range(PER_STEP):
        events.append((n, False))
        taken.append(n)
        while len(taken) == MOST_IN_USE or (taken and draw.random() < 0.5):
            events.append((taken.pop(draw.randrange(len(taken))), True))
    return [*events, *((n, True) for n in taken)]


def pieces_of(tag: int, destination: int, step: int, number: int, *, num_ranks: int) -> dict[int, list[Piece]]:
    """By source: pieces with places of their own in one room, few long ones or many of one row; some are nobody's."""
    draw = random.Random(f"{tag} {destination} {step} {number}")
    sources = [rank for rank in range(num_ranks) if rank != destination]
    is_fine = draw.random() < 0.1
    cuts = sorted({0, MAX_ROWS, *(range(MAX_ROWS) if is_fine else draw.sample(range(MAX_ROWS), 6))})
    places = [(start, end - start) for start, end in pairwise(cuts)]
    draw.shuffle(places)
    pieces: dict[int, list[Piece]] = {source: [] for source in sources}
    for place, (to_row, count) in enumerate(places):
        if place < len(sources):
            owner = sources[place]
        elif is_fine:
            owner = sources[0] if place < MOST_COPIES + 20 else sources[-1]
        else:
            owner = draw.choice([*sources, destination])
        if owner != destination:
            pieces[owner].append(Piece(draw.randrange(MAX_ROWS - count + 1), to_row, count))
    return pieces
