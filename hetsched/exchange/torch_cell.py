"""One cell of torch's schedule CSV: an action without a module, such as ``2F0`` or ``(0F4;7B0)OVERLAP_F_B``."""

from __future__ import annotations

import re

from hetsched.errors import ScheduleError
from hetsched.schedule.action import Action, parse_action

_PAIR = re.compile(r"\(([^;]*);([^;]*)\)OVERLAP_F_B")


def parse_cell(text: str, *, module: str) -> Action:
    """The action of ``module`` that a cell names.

    Raises:
        ScheduleError: the text is not exactly what torch prints for an action.
    """
    pair = _PAIR.fullmatch(text)
    named = f"({module}:{pair[1]};{module}:{pair[2]})OVERLAP_F_B" if pair else f"{module}:{text}"
    try:
        # Windows of microbatches are the one form that is ours and not torch's.
        action = None if "-" in text else parse_action(named)
    except ScheduleError:
        action = None
    if action is None:
        raise ScheduleError(
            f"{text!r} is not an action of torch's; write e.g. 2F0, 3SEND_B1, 0UNSHARD or (0F4;7B0)OVERLAP_F_B"
        )
    return action


def print_cell(action: Action) -> str:
    """The cell of an action, whatever its module.

    Raises:
        ScheduleError: the action is a window of microbatches, which torch does not have.
    """
    if action.parts:
        return f"({';'.join(map(print_cell, action.parts))}){action.kind}"
    if action.first != action.last:
        raise ScheduleError(f"{action} is a window of microbatches; an action of torch's schedules takes one")
    return f"{action.stage}{action.kind}{'' if action.first is None else action.first}"
