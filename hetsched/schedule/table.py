"""Integers for actions, stated by pattern: what costs, sizes and memory are given in.

A pattern prints as an action does, and leaves out what it does not restrict: ``F`` is every forward, ``llm:F`` those
of a module, ``llm:2F`` of a stage, ``vision:F3`` of a microbatch, ``vision:0F3@1`` of a lane.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import NamedTuple

from hetsched.errors import ScheduleError
from hetsched.schedule.action import Kind

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PATTERN = re.compile(
    rf"(?:(?P<module>{_NAME}(?:->{_NAME})?):(?P<stage>\d+)?)?"
    rf"(?P<kind>{'|'.join(sorted(Kind, key=len, reverse=True))})(?P<microbatch>\d+)?(?:@(?P<lane>\d+))?"
)


class Pattern(NamedTuple):
    """The actions of a kind, on one microbatch of a window at a time; None is any."""

    kind: Kind
    module: str | None = None
    stage: int | None = None
    microbatch: int | None = None
    lane: int | None = None

    def __str__(self) -> str:
        module = "" if self.module is None else f"{self.module}:"
        stage, microbatch = ("" if n is None else str(n) for n in (self.stage, self.microbatch))
        lane = "" if self.lane is None else f"@{self.lane}"
        return f"{module}{stage}{self.kind}{microbatch}{lane}"


def parse_pattern(text: str) -> Pattern:
    """The pattern that prints as ``text``.

    Raises:
        ScheduleError: the text is not the printed form of a pattern.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ScheduleError(f"{text!r} names no actions; write [<module>:[<stage>]]<kind>[<microbatch>][@<lane>]")
    numbers = [None if match[key] is None else int(match[key]) for key in ("stage", "microbatch", "lane")]
    pattern = Pattern(Kind(match["kind"]), match["module"], *numbers)
    if str(pattern) != text:
        raise ScheduleError(f"{text!r} is not in canonical form; write {str(pattern)!r}")
    return pattern


@dataclass(frozen=True)
class ActionTable:
    """Looks up the integer of the most specific pattern: first by lane, then by microbatch, then by stage.

    Args:
        values: pattern -> value.
    """

    values: Mapping[Pattern, int]
    _masks: tuple[tuple[bool, bool, bool], ...] = field(init=False, repr=False, compare=False)
    _found: dict[tuple[object, ...], int | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {(p.lane is not None, p.microbatch is not None, p.stage is not None) for p in self.values}
        every = product((True, False), repeat=3)
        object.__setattr__(self, "_masks", tuple(mask for mask in every if mask in given))
        object.__setattr__(self, "_found", {})

    @classmethod
    def parse(cls, values: Mapping[str, int]) -> ActionTable:
        """The table of printed patterns.

        Raises:
            ScheduleError: a key is not a pattern, or a value is not an integer of at least 0.
        """
        for text, value in values.items():
            if type(value) is not int or value < 0:
                raise ScheduleError(f"{text}: {value!r} is not an integer of at least 0")
        return cls({parse_pattern(text): value for text, value in values.items()})

    def is_by_stage(self, module: str) -> bool:
        """Whether no pattern that may be an action's of the module restricts the microbatch or the lane."""
        return self._restricted.isdisjoint((module, None))

    @cached_property
    def _restricted(self) -> frozenset[str | None]:
        """Modules of the patterns that do."""
        return frozenset(p.module for p in self.values if p.microbatch is not None or p.lane is not None)

    def find(self, kind: Kind, module: str, stage: int, *, microbatch: int | None, lane: int) -> int | None:
        """The value for one microbatch on a lane, or None."""
        key: tuple[object, ...] = (kind, module, stage)
        if not self.is_by_stage(module):
            key = (kind, module, stage, microbatch, lane)
        if key not in self._found:
            self._found[key] = self._search(Pattern(kind, module, stage, microbatch, lane))
        return self._found[key]

    def _search(self, exact: Pattern) -> int | None:
        for module in (exact.module, None):
            for by_lane, by_microbatch, by_stage in self._masks:
                pattern = Pattern(
                    exact.kind,
                    module,
                    exact.stage if by_stage else None,
                    exact.microbatch if by_microbatch else None,
                    exact.lane if by_lane else None,
                )
                if pattern in self.values:
                    return self.values[pattern]
        return None
