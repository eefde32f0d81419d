"""How much encoder state a timeline holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hetsched.schedule.action import Kind
from hetsched.sim.timeline import Stream, Timeline


@dataclass(slots=True)
class HeldState:
    """A microbatch's encoder state: from when to when it is held, and on which lanes.

    It counts from the start of the first forward to the end of the last backward, or of the last forward where there
    is no backward.
    """

    start_ns: int
    end_ns: int
    lanes: set[int]


def held_state(timeline: Timeline, module: str, *, recomputed: Collection[int] = ()) -> dict[int, HeldState]:
    """The state that an encoder holds, by microbatch.

    Args:
        timeline: simulated or measured.
        module: the encoder.
        recomputed: microbatches that keep only their output, and hold none.
    """
    held: dict[int, HeldState] = {}
    for lane in range(len(timeline.program.lanes)):
        for span in timeline.stream(lane, Stream.COMPUTE):
            if span.action.module != module or span.action.kind not in (Kind.F, Kind.B):
                continue
            for m in set(span.action.microbatches).difference(recomputed):
                of = held.setdefault(m, HeldState(span.start_ns, span.end_ns, set()))
                of.start_ns, of.end_ns = min(of.start_ns, span.start_ns), max(of.end_ns, span.end_ns)
                of.lanes.add(lane)
    return held


def encoder_in_flight(timeline: Timeline, module: str, *, recomputed: Collection[int] = ()) -> int:
    """The most microbatches whose state an encoder holds at once, over all lanes; arguments as of ``held_state``."""
    # What ends at a time makes room for what starts then.
    changes = sorted(
        change
        for held in held_state(timeline, module, recomputed=recomputed).values()
        for change in ((held.start_ns, 1, 1), (held.end_ns, 0, -1))
    )
    most = count = 0
    for _, _, change in changes:
        count += change
        most = max(most, count)
    return most
