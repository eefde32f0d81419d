"""Who copies which rows to whom over a boundary: the forward route and its adjoint, as segments.

Two axes describe a boundary. *Produced rows* number what the producer makes, each row once. *Use
positions* number where the consumer wants rows; use runs map them to produced rows, so that an image used twice is two
runs with the same produced rows. On either side any rank may hold any runs, and several ranks the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetsched import _core

IntArray = NDArray[np.int64]


class UseRun(NamedTuple):
    """Use positions from ``use_start`` are filled by the produced rows from ``produced_start``."""

    use_start: int
    produced_start: int
    num_rows: int


class HolderRun(NamedTuple):
    """A rank keeps ``num_rows`` rows from ``start`` of its side's axis in its local rows from ``row``.

    The axis is that of produced rows for a producer and that of use positions for a consumer.
    """

    rank: int
    row: int
    start: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows copied from one rank's local rows to another's."""

    src_rank: int
    src_row: int
    dst_rank: int
    dst_row: int
    num_rows: int


Runs = Sequence[tuple[int, ...]] | IntArray
"""UseRuns or HolderRuns, or an integer array ``[num_runs, columns]`` with their fields as columns."""


def forward_route(
    uses: Runs, producers: Runs, consumers: Runs, *, host_of: Sequence[int] | None = None
) -> tuple[Segment, ...]:
    """The segments that bring every consumer row from exactly one producer.

    A row comes from the consumer itself if it produces it, otherwise from a producer on the same host,
    otherwise from any; among several the one with the fewest rows sent to others so far, ties to the
    smaller rank. So no row crosses ranks that need not.

    Args:
        uses: UseRuns; together they name each use position at most once.
        producers: HolderRuns over produced rows.
        consumers: HolderRuns over use positions.
        host_of: for each rank the host it is on; None where hosts do not matter.

    Returns:
        Segments by destination rank, then destination row; neighbors are joined.

    Raises:
        ValueError: a use that nobody produces, a consumer row that is in no use run, a rank that holds a
            row twice or two rows in one place, a negative number; the message names argument, rank and rows.
    """
    return segments_of(forward_route_array(uses, producers, consumers, host_of=host_of))


def backward_route(
    uses: Runs, producers: Runs, consumers: Runs, *, partial: bool, host_of: Sequence[int] | None = None
) -> tuple[Segment, ...]:
    """The segments that bring every producer row the gradients of its uses: the adjoint of the forward route.

    A producer row's gradient is the sum over its uses, and a row without uses has none. Every rank that holds
    the row receives the same addends in the same order.

    Args:
        uses, producers, consumers, host_of: as for ``forward_route``.
        partial: whether the holders of a use position have addends of its gradient, which are all sent, or
            copies of it, of which one is sent, chosen by the rule of ``forward_route`` with the roles swapped.

    Returns:
        Segments by destination rank; those that reach the same row are ordered by use position, then source
        rank, and are to be summed in that order.

    Raises:
        ValueError: as for ``forward_route``.
    """
    return segments_of(backward_route_array(uses, producers, consumers, partial=partial, host_of=host_of))


def forward_route_array(
    uses: Runs, producers: Runs, consumers: Runs, *, host_of: Sequence[int] | None = None
) -> IntArray:
    """``forward_route`` as an array ``[num_segments, 5]``, with the fields of Segment as columns."""
    return _core.forward_route(*_boundary(uses, producers, consumers, host_of))


def backward_route_array(
    uses: Runs, producers: Runs, consumers: Runs, *, partial: bool, host_of: Sequence[int] | None = None
) -> IntArray:
    """``backward_route`` as an array ``[num_segments, 5]``, with the fields of Segment as columns."""
    return _core.backward_route(*_boundary(uses, producers, consumers, host_of), partial=partial)


def segments_of(route: IntArray) -> tuple[Segment, ...]:
    """The segments of a route array, in its order."""
    return tuple(Segment(*row) for row in route.tolist())


def _boundary(
    uses: Runs, producers: Runs, consumers: Runs, host_of: Sequence[int] | None
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """The arguments as the core takes them."""
    return (
        _columns(uses, name="uses", fields=UseRun._fields),
        _columns(producers, name="producers", fields=HolderRun._fields),
        _columns(consumers, name="consumers", fields=HolderRun._fields),
        np.asarray(() if host_of is None else host_of, np.int64),
    )


def _columns(runs: Runs, *, name: str, fields: tuple[str, ...]) -> IntArray:
    array = np.asarray(runs)
    if array.size == 0:
        return np.empty((0, len(fields)), np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != len(fields):
        expected = f"integers [n, {len(fields)}] ({', '.join(fields)})"
        raise ValueError(f"{name}: expected {expected}, got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array, np.int64)
