"""One action of a program, its text form, and the strict parser that inverts it.

An action prints as ``<module>:<stage><kind><microbatch>``, e.g. ``llm:2F0``. The kinds are torch's
letters (torch.distributed.pipelining.schedules). A window of microbatches prints as ``vision:0F0-3``,
a transfer over a boundary names the edge, ``vision->llm:0SEND_F3``, an action of a whole step has no
microbatch, ``llm:0REDUCE_GRAD``, and a fused pair prints as ``(llm:0F4;llm:7B0)OVERLAP_F_B``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from hetsched.errors import ScheduleError


class Kind(StrEnum):
    """What an action does; the letters are those of torch's pipeline schedules."""

    F = "F"
    """Forward."""
    B = "B"
    """Full backward: input and weight gradients."""
    I = "I"  # noqa: E741
    """Input gradient only."""
    W = "W"
    """Weight gradient, deferred from the I of the same microbatch."""
    OVERLAP_F_B = "OVERLAP_F_B"
    """A forward and a backward of two microbatches run as one."""
    SEND_F = "SEND_F"
    RECV_F = "RECV_F"
    SEND_B = "SEND_B"
    RECV_B = "RECV_B"
    UNSHARD = "UNSHARD"
    RESHARD = "RESHARD"
    REDUCE_GRAD = "REDUCE_GRAD"

    is_compute: bool
    is_transfer: bool
    is_collective: bool
    """Entered by every rank that holds the stage; belongs to the step, not to a microbatch."""

    def __init__(self, text: str) -> None:
        # Kept, as they are asked for of millions of actions.
        self.is_compute = text in ("F", "B", "I", "W", "OVERLAP_F_B")
        self.is_transfer = text in ("SEND_F", "RECV_F", "SEND_B", "RECV_B")
        self.is_collective = text in ("UNSHARD", "RESHARD", "REDUCE_GRAD")


# In the order of csrc/core/program.h.
KINDS = (
    *(Kind.F, Kind.B, Kind.I, Kind.W, Kind.SEND_F, Kind.RECV_F, Kind.SEND_B, Kind.RECV_B),
    *(Kind.UNSHARD, Kind.RESHARD, Kind.REDUCE_GRAD),
)


class Action(NamedTuple):
    """One entry of a lane's list.

    Args:
        module: module name; for a transfer over a boundary the edge's name, ``producer->consumer``.
        stage: global index of the stage within the module (of the end that sends or receives, for a
            transfer over a boundary).
        kind: what is done.
        first, last: the microbatches, inclusive; None for actions of the whole step.
        parts: the forward and the backward of an OVERLAP_F_B, otherwise empty.
    """

    module: str
    stage: int
    kind: Kind
    first: int | None = None
    last: int | None = None
    parts: tuple[Action, ...] = ()

    @property
    def microbatches(self) -> range:
        """The microbatches this action works on; empty for actions of the whole step."""
        if self.first is None or self.last is None:
            return range(0)
        return range(self.first, self.last + 1)

    def flat(self) -> Iterator[Action]:
        """The action itself, or the parts of a fused pair in order."""
        if self.parts:
            yield from self.parts
        else:
            yield self

    def __str__(self) -> str:
        if self.parts:
            return f"({';'.join(map(str, self.parts))}){self.kind}"
        window = "" if self.first is None else str(self.first)
        if self.last != self.first:
            window += f"-{self.last}"
        return f"{self.module}:{self.stage}{self.kind}{window}"


def act(module: str, stage: int, kind: Kind, microbatch: int | None = None, last: int | None = None) -> Action:
    """Shorthand for an action on one microbatch (or a window ``microbatch..last``)."""
    return Action(module, stage, kind, microbatch, microbatch if last is None else last)


def overlap(forward: Action, backward: Action) -> Action:
    """The fused action of a forward and a backward on one lane."""
    return Action(forward.module, forward.stage, Kind.OVERLAP_F_B, forward.first, forward.last, (forward, backward))


_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
# As long as numbers may be for the compiled core, whose integers have 32 bits.
_NUMBER = r"\d{1,9}"
_PLAIN = re.compile(
    rf"(?P<module>{_NAME}(?:->{_NAME})?):(?P<stage>{_NUMBER})"
    r"(?P<kind>SEND_F|RECV_F|SEND_B|RECV_B|UNSHARD|RESHARD|REDUCE_GRAD|F|B|I|W)"
    rf"(?:(?P<first>{_NUMBER})(?:-(?P<last>{_NUMBER}))?)?"
)
_PAIR = re.compile(r"\((?P<forward>[^;()]+);(?P<backward>[^;()]+)\)OVERLAP_F_B")


def parse_action(text: str) -> Action:
    """The action that prints as ``text``.

    Raises:
        ScheduleError: the text is not exactly the printed form of an action.
    """
    if pair := _PAIR.fullmatch(text):
        forward, backward = parse_action(pair["forward"]), parse_action(pair["backward"])
        if forward.kind is not Kind.F or backward.kind is not Kind.B:
            raise ScheduleError(f"{text!r}: OVERLAP_F_B takes a forward and a full backward, in that order")
        return overlap(forward, backward)
    match = _PLAIN.fullmatch(text)
    if match is None:
        raise ScheduleError(f"{text!r} is not an action; write <module>:<stage><kind><microbatch>, e.g. llm:2F0")
    kind = Kind(match["kind"])
    first = None if match["first"] is None else int(match["first"])
    last = first if match["last"] is None else int(match["last"])
    if kind.is_collective != (first is None):
        raise ScheduleError(f"{text!r}: {kind} {'takes no microbatch' if kind.is_collective else 'needs a microbatch'}")
    if "->" in match["module"] and not kind.is_transfer:
        raise ScheduleError(f"{text!r}: only transfers happen on a boundary, not {kind}")
    if first is not None and last is not None and match["last"] is not None and last <= first:
        raise ScheduleError(f"{text!r}: a window ends after it begins")
    action = Action(match["module"], int(match["stage"]), kind, first, last)
    if str(action) != text:
        raise ScheduleError(f"{text!r} is not in canonical form; write {str(action)!r}")
    return action
