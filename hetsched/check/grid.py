"""The lanes of a program around a fault, as text with an arrow."""

from __future__ import annotations

from collections.abc import Mapping

from hetsched.schedule.program import Program

_BEFORE, _AFTER = 2, 2
_MAX_LANES = 8


def draw(program: Program, *, marks: Mapping[int, int], arrow: int) -> str:
    """One row per lane: the actions around its mark, with an arrow at the mark of lane ``arrow``.

    Args:
        program: what to draw.
        marks: lane -> position in its list, or the list's length for its end. The other lanes are drawn around
            the arrow's position.
        arrow: the lane at fault, one of ``marks``.
    """
    rows = []
    shown = _lanes(len(program.lanes), marks, arrow)
    for lane in shown:
        length = len(program.lanes[lane])
        center = min(marks.get(lane, marks[arrow]), length)
        cells = [_cell(program, lane, position) for position in range(center - _BEFORE, center + _AFTER + 1)]
        if lane in marks:
            cells[_BEFORE] = f"[{cells[_BEFORE]}]"
        rows.append([f"lane {lane}", f"@{center}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for lane, row in zip(shown, rows, strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if lane == arrow:
            indent = sum(width + 2 for width in widths[: _BEFORE + 2])
            lines.append(" " * indent + "^" * len(row[_BEFORE + 2]) + " here")
    hidden = len(program.lanes) - len(shown)
    return "\n".join(lines + ([f"({hidden} more lanes)"] if hidden else []))


def _lanes(num_lanes: int, marks: Mapping[int, int], arrow: int) -> list[int]:
    """The marked lanes and those nearest to the arrow's."""
    by_importance = sorted(range(num_lanes), key=lambda lane: (lane not in marks, abs(lane - arrow), lane))
    return sorted(by_importance[: max(_MAX_LANES, len(marks)) if len(marks) <= 2 * _MAX_LANES else _MAX_LANES])


def _cell(program: Program, lane: int, position: int) -> str:
    actions = program.lanes[lane]
    if 0 <= position < len(actions):
        return str(actions[position])
    return "end" if position == len(actions) else ""
