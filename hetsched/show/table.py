"""Figures as columns of text: a comparison of two timelines, and what a step hid of its messages."""

from __future__ import annotations

from collections.abc import Sequence

from hetsched.show.compare import Comparison
from hetsched.show.layer import scaling
from hetsched.show.text import draw, wrapped
from hetsched.show.unit import MILLISECOND, Unit
from hetsched.sim.overlap import Overlap

_HEAD = ("", "actions", "predicted", "measured", "error", "mean distance")
_MESSAGES = "SEND: from when a message could leave until it was there, waiting included, which says nothing of its cost"
_OVERLAP_HEAD = ("", "messages", "MB", "under way", "exposed", "hidden")


def draw_comparison(
    comparison: Comparison, *, width: int = 120, unit: Unit = MILLISECOND, columns: int | None = None
) -> str:
    """Both timelines under each other, on one axis, then the errors and the first divergence.

    Args:
        comparison: what is drawn.
        width, unit, columns: as in ``draw``.
    """
    rows = [list(_HEAD)]
    for error in comparison.errors:
        times = (unit.text(round(time)) for time in (error.predicted_ns, error.measured_ns))
        rows.append([error.name, str(error.count), *times, error.share, unit.text(round(error.mean_error_ns))])
    divergence = comparison.divergence
    first = "no action diverges" if divergence is None else f"first divergence: {divergence.text}"
    end_ns = max(comparison.predicted.makespan_ns, comparison.measured.makespan_ns)
    predicted, measured = (
        draw(timeline, width=width, unit=unit, end_ns=end_ns, columns=columns)
        for timeline in (comparison.predicted, comparison.measured)
    )
    note = [wrapped(_MESSAGES, columns)] if any(error.is_message for error in comparison.errors) else []
    return "\n".join(
        [
            f"predicted{scaling(comparison)}",
            predicted,
            "",
            "measured",
            measured,
            "",
            *_columns(rows),
            *note,
            "",
            wrapped(first, columns),
        ]
    )


def draw_overlap(overlaps: Sequence[Overlap], *, unit: Unit = MILLISECOND) -> str:
    """A line for each edge and direction, and for each module's context parallelism; times added up over messages."""
    rows = [list(_OVERLAP_HEAD)]
    for of in overlaps:
        times = (unit.text(time) for time in (of.under_way_ns, of.exposed_ns))
        rows.append([of.name, str(of.num_messages), f"{of.num_bytes / 1e6:.3f}", *times, f"{of.hidden:.1%}"])
    return "\n".join(_columns(rows))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first cells to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
