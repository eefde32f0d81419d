"""How much encoder state a timeline holds."""

from __future__ import annotations

from collections.abc import Collection

from hetsched.schedule.action import Kind
from hetsched.sim.timeline import Stream, Timeline


def encoder_in_flight(timeline: Timeline, module: str, *, recomputed: Collection[int] = ()) -> int:
    """The most microbatches whose state an encoder holds at once, over all lanes.

    Args:
        timeline: simulated or measured.
        module: the encoder. State counts from the start of a microbatch's first forward to the end of its last
            backward, or of its last forward where it has no backward.
        recomputed: microbatches that keep only their output, and count as none.
    """
    held: dict[int, tuple[int, int]] = {}
    for lane in range(len(timeline.program.lanes)):
        for span in timeline.stream(lane, Stream.COMPUTE):
            if span.action.module != module or span.action.kind not in (Kind.F, Kind.B):
                continue
            for m in span.action.microbatches:
                start, end = held.get(m, (span.start_ns, span.end_ns))
                held[m] = min(start, span.start_ns), max(end, span.end_ns)
    # What ends at a time makes room for what starts then.
    changes = sorted(
        change for m, (start, end) in held.items() if m not in recomputed for change in ((start, 1, 1), (end, 0, -1))
    )
    most = count = 0
    for _, _, change in changes:
        count += change
        most = max(most, count)
    return most
