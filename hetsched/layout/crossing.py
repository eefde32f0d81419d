"""One microbatch's crossing of a boundary: from the shares on both sides to routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetsched.batch import Item
from hetsched.layout.grid import Grid
from hetsched.layout.routes import HolderRun, Segment, UseRun, backward_route, forward_route
from hetsched.layout.shares import Share


@dataclass(frozen=True)
class Crossing:
    """Who copies which rows to whom.

    Args:
        forward, backward: the routes; the backward adds up what arrives, and is empty if nobody needs it.
        index: for each consumer replica, the rows of its packed sequence that arriving rows fill, in order.
        produced: for each producer replica, the rows that it produces.
    """

    forward: tuple[Segment, ...]
    backward: tuple[Segment, ...]
    index: tuple[tuple[int, ...], ...]
    produced: tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One end of a boundary.

    Args:
        module: its name.
        grid: its ranks.
        pp: the pipeline rank that holds the rows.
    """

    module: str
    grid: Grid
    pp: int


def cross(
    producer: Side, produced: Sequence[Share], consumer: Side, consumed: Sequence[Share], *, has_backward: bool
) -> Crossing:
    """The crossing of the rows that ``consumed`` uses and ``produced`` makes; one share per replica on either side."""
    sources, produced_at = _sources(producer, produced)
    uses: list[UseRun] = []
    sinks: list[HolderRun] = []
    index: list[tuple[int, ...]] = []
    num_uses = 0
    for dp, share in enumerate(consumed):
        rows: list[int] = []
        first = num_uses
        for row, placeholder in share.placeholders(producer.module):
            count = placeholder.item.num_rows
            uses.append(UseRun(num_uses, produced_at[placeholder.item.key], count))
            rows.extend(range(row, row + count))
            num_uses += count
        index.append(tuple(rows))
        if rows:
            sinks.append(HolderRun(consumer.grid.rank(dp=dp, pp=consumer.pp), 0, first, len(rows)))
    return Crossing(
        forward=forward_route(uses, sources, sinks),
        backward=backward_route(uses, sources, sinks, partial=False) if has_backward else (),
        index=tuple(index),
        produced=tuple(share.num_rows for share in produced),
    )


def _sources(producer: Side, produced: Sequence[Share]) -> tuple[list[HolderRun], dict[int, int]]:
    """The runs that the producer's ranks hold, and where each item's rows begin among all produced rows."""
    runs: list[HolderRun] = []
    produced_at: dict[int, int] = {}
    start = 0
    for dp, share in enumerate(produced):
        if share.num_rows:
            runs.append(HolderRun(producer.grid.rank(dp=dp, pp=producer.pp), 0, start, share.num_rows))
        for item in share.members:
            assert isinstance(item, Item)
            produced_at[item.key] = start
            start += item.num_rows
    return runs, produced_at
