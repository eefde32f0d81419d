"""Figures as columns of text: a comparison of two timelines, and what a step hid of its messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hetsched.show.compare import Comparison
from hetsched.show.text import draw, wrapped
from hetsched.show.unit import MILLISECOND, Unit
from hetsched.sim.overlap import Overlap

_HEAD = ("", "actions", "predicted", "measured", "error", "mean distance")
_OVERLAP_HEAD = ("", "messages", "MB", "under way", "exposed", "hidden")


def draw_comparison(
    comparison: Comparison, *, width: int = 120, unit: Unit = MILLISECOND, columns: int | None = None
) -> str:
    """Both timelines under each other, each on an axis of its own, then the errors and the first divergence.

    Args:
        comparison: what is drawn.
        width, unit, columns: as in ``draw``.
    """
    rows = [list(_HEAD)]
    for error in comparison.errors:
        share = "" if math.isinf(error.error) else f"{error.error:+.1%}"
        times = (unit.text(round(time)) for time in (error.predicted_ns, error.measured_ns))
        rows.append([error.name, str(error.count), *times, share, unit.text(round(error.mean_error_ns))])
    divergence = comparison.divergence
    first = "no action diverges" if divergence is None else f"first divergence: {divergence.text}"
    scale = "" if math.isclose(comparison.scale, 1.0) else f" (times scaled by {comparison.scale:.3g} to the same work)"
    return "\n".join(
        [
            f"predicted{scale}",
            draw(comparison.predicted, width=width, unit=unit, columns=columns),
            "",
            "measured",
            draw(comparison.measured, width=width, unit=unit, columns=columns),
            "",
            *_columns(rows),
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
