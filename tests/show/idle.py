"""How long a function takes on an idle core, measured on one that is shared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from hetsched.schedule.action import Kind, act

Result = TypeVar("Result")

_ACTIONS = [act("llm", number % 64, Kind.F, number) for number in range(50_000)]
_NUMBER_OF = {(action.module, action.stage, action.first): number for number, action in enumerate(_ACTIONS)}
_IDLE_PASSES_S = 0.056
"""Four passes on an idle core."""


def idle_seconds(function: Callable[[], Result]) -> tuple[float, Result]:
    """The processor time of a function, corrected by how slow the core and its caches are beside it.

    The least of three: what others do only adds.
    """
    least = math.inf
    for _ in range(3):
        before, began = _passes_s(), time.process_time()
        result = function()
        taken = time.process_time() - began
        slowness = max(1.0, (before + _passes_s()) / 2 / _IDLE_PASSES_S)
        least = min(least, taken / slowness)
    return least, result


def _passes_s() -> float:
    """Of work like that of the functions: attributes of many objects, and places found by tuples."""
    began = time.process_time()
    for _ in range(4):
        for action in _ACTIONS:
            _NUMBER_OF[action.module, action.stage, action.first]
    return time.process_time() - began
