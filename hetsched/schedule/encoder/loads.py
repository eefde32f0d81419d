"""What an encoder has to do in a step, and how its placement may go about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder.credits import Credit
from hetsched.schedule.program import Program
from hetsched.schedule.table import Pattern


class ItemCost(NamedTuple):
    """One item's work on one lane, in ns."""

    forward_ns: int
    backward_ns: int


@dataclass(frozen=True)
class EncoderLoads:
    """What the actions of a step cost.

    Args:
        duration_ns: of an action, or a part of one, of the module that computes the loss on a lane.
        items: for each encoder the items of each microbatch; one without items is not encoded.
    """

    duration_ns: Callable[[Action, int], int]
    items: Mapping[str, Sequence[Sequence[ItemCost]]]


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """How ``window`` and ``fill`` go about it.

    Args:
        window: microbatches of one encoder action, of ``window``.
        in_flight: most microbatches whose encoder state is held at once, over all lanes, from the start of their
            forward to the end of their backward; None for any number. Of ``fill``.
        recompute: a microbatch may keep only its output, hold no state and pay its forward again in its backward.
        split_items: the items of a microbatch may go to several lanes.
        budget: candidate programs that the search may time; None for ``default_budget``.
    """

    window: int = 4
    in_flight: int | None = None
    recompute: bool = False
    split_items: bool = False
    budget: int | None = None


class PlacedShare(NamedTuple):
    """What a lane does of one microbatch of an encoder: items ``first_item`` and the next, ``num_items`` of them."""

    lane: int
    first_item: int
    num_items: int


@dataclass(frozen=True)
class Placement:
    """A program with its encoders, and who does what.

    Args:
        program: of compute actions, to be lowered.
        shares: ``(encoder, microbatch)`` -> its shares, by lane.
        durations_ns: what the encoder's actions cost, by the given loads.
        recomputed: for each encoder the microbatches that keep only their output.
        credits: of all encoders, where state that may be in flight is short.
        num_evaluations: candidate programs that were timed.
    """

    program: Program
    shares: Mapping[tuple[str, int], tuple[PlacedShare, ...]] = field(default_factory=dict)
    durations_ns: Mapping[Pattern, int] = field(default_factory=dict)
    recomputed: Mapping[str, frozenset[int]] = field(default_factory=dict)
    credits: tuple[Credit, ...] = ()
    num_evaluations: int = 0


def share_durations(
    encoder: str, shares: Mapping[int, Sequence[PlacedShare]], loads: EncoderLoads, recomputed: frozenset[int]
) -> dict[Pattern, int]:
    """What the F and B of each share cost, as patterns of a cost table."""
    result: dict[Pattern, int] = {}
    for m, of_lanes in shares.items():
        for share in of_lanes:
            items = loads.items[encoder][m][share.first_item : share.first_item + share.num_items]
            forward = sum(item.forward_ns for item in items)
            backward = sum(item.backward_ns for item in items) + (forward if m in recomputed else 0)
            result[Pattern(Kind.F, encoder, 0, m, share.lane)] = forward
            result[Pattern(Kind.B, encoder, 0, m, share.lane)] = backward
    return result


def default_budget(num_actions: int) -> int:
    """Evaluations for a program: many for a small one, which is hard to fill; a large one is nearly full at once."""
    return min(_MOST_BUDGET, max(_LEAST_BUDGET, _CUBED_ACTIONS // max(num_actions, 1) ** 3))


_CUBED_ACTIONS = 1 << 34
_LEAST_BUDGET = 12
_MOST_BUDGET = 8000
