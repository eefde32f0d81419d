"""A comparison of two timelines as text."""

from __future__ import annotations

import math

from hetsched.show.compare import Comparison
from hetsched.show.text import draw
from hetsched.show.unit import MILLISECOND, Unit

_HEAD = ("", "actions", "predicted", "measured", "error", "mean distance")


def draw_comparison(comparison: Comparison, *, width: int = 120, unit: Unit = MILLISECOND) -> str:
    """Both timelines under each other, each on an axis of its own, then the errors and the first divergence."""
    rows = [list(_HEAD)]
    for error in comparison.errors:
        share = "" if math.isinf(error.error) else f"{error.error:+.1%}"
        times = (unit.text(round(time)) for time in (error.predicted_ns, error.measured_ns))
        rows.append([error.name, str(error.count), *times, share, unit.text(round(error.mean_error_ns))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    divergence = comparison.divergence
    first = "no action diverges" if divergence is None else f"first divergence: {divergence.text}"
    scale = "" if math.isclose(comparison.scale, 1.0) else f" (times scaled by {comparison.scale:.3g} to the same work)"
    return "\n".join(
        [
            f"predicted{scale}",
            draw(comparison.predicted, width=width, unit=unit),
            "",
            "measured",
            draw(comparison.measured, width=width, unit=unit),
            "",
            *lines,
            "",
            first,
        ]
    )
