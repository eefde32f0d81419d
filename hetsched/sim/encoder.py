"""How much encoder state a timeline holds."""

from __future__ import annotations

from collections.abc import Collection

from hetsched.schedule.encoder.credits import held_state
from hetsched.sim.timeline import Stream, Timeline


def encoder_in_flight(timeline: Timeline, module: str, *, recomputed: Collection[int] = ()) -> int:
    """The most microbatches whose state an encoder holds at once, over all lanes.

    Args:
        timeline: simulated or measured.
        module: the encoder.
        recomputed: microbatches that keep only their output, and hold none.
    """
    ran = ((s.lane, s.action, s.start_ns, s.end_ns) for s in timeline.spans if s.stream is Stream.COMPUTE)
    # What ends at a time makes room for what starts then.
    changes = sorted(
        change
        for held in held_state(ran, module, recomputed=recomputed).values()
        for change in ((held.start_ns, 1, 1), (held.end_ns, 0, -1))
    )
    most = count = 0
    for _, _, change in changes:
        count += change
        most = max(most, count)
    return most
