"""Pairs of layouts: on the same ranks, on disjoint ones, on some of the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from random import Random

from tests.plan.crossing_oracle import Pair
from tests.plan.every_layout import BATCHES, MAX_RANKS, SPREADS, SideLayout, side_layouts

PRODUCERS = side_layouts()
CONSUMERS = side_layouts(has_partial_gradients=(False, True))


def colocated() -> Iterator[Pair]:
    """Every pair of layouts of as many ranks, which are the same."""
    pairs = [(p, c) for p, c in itertools.product(PRODUCERS, CONSUMERS) if p.num_ranks == c.num_ranks]
    return _pairs((p, range(p.num_ranks), c, range(c.num_ranks)) for p, c in pairs)


def disjoint(*, max_ranks: int) -> Iterator[Pair]:
    """Every pair of layouts on ranks of their own, ``max_ranks`` in all at most."""
    pairs = [(p, c) for p, c in itertools.product(PRODUCERS, CONSUMERS) if p.num_ranks + c.num_ranks <= max_ranks]
    return _pairs((p, range(p.num_ranks), c, range(p.num_ranks, p.num_ranks + c.num_ranks)) for p, c in pairs)


def overlapping(count: int) -> Iterator[Pair]:
    """Random pairs of layouts on random ranks, some of which they share, but not all."""
    random = Random(0)

    def draw() -> tuple[SideLayout, list[int], SideLayout, list[int]]:
        while True:
            producer, consumer = random.choice(PRODUCERS), random.choice(CONSUMERS)
            source, sink = (random.sample(range(MAX_RANKS), side.num_ranks) for side in (producer, consumer))
            if set(source) & set(sink) and set(source) != set(sink):
                return producer, source, consumer, sink

    return _pairs(draw() for _ in range(count))


def _pairs(sides: Iterable[tuple[SideLayout, Iterable[int], SideLayout, Iterable[int]]]) -> Iterator[Pair]:
    """Each with a microbatch and a map of tokens, in turn, so that they meet in every combination."""
    microbatches = itertools.cycle(itertools.product(BATCHES, SPREADS))
    for number, (producer, source, consumer, sink) in enumerate(sides):
        (batch, spread), pp = next(microbatches), number % consumer.degrees.pp
        yield Pair(producer, tuple(source), consumer, tuple(sink), pp, batch, spread)
