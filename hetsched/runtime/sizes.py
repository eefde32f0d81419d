"""How large the messages of a step are, which every rank knows for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hetsched.layout.routes import Segment
from hetsched.plan import Plan
from hetsched.runtime.work import Channels
from hetsched.stepplan import StepPlan


def largest_messages(plan: Plan, step: StepPlan, channels: Channels) -> dict[int, int]:
    """Bytes of the largest message of each channel, by tag; channels without messages may be missing."""
    largest: dict[int, int] = defaultdict(int)
    for (edge, _), crossing in step.crossings.items():
        for is_forward, route in ((True, crossing.forward), (False, crossing.backward)):
            channel = channels.of(edge, 0, is_forward=is_forward)
            largest[channel.tag] = max(largest[channel.tag], _most_rows(route) * channel.row_bytes)
    for module, grid in plan.grids.items():
        num_rows = max(share.num_tokens for m in range(plan.microbatches) for share in step.shares[module, m])
        for stage in range(grid.layout.num_stages - 1):
            for is_forward in (True, False):
                channel = channels.of(module, stage, is_forward=is_forward)
                largest[channel.tag] = num_rows * channel.row_bytes
    for boundary in plan.boundaries:
        channel = channels.of_signals(boundary.producer)
        largest[channel.tag] = channel.row_bytes
    return dict(largest)


def _most_rows(route: Iterable[Segment]) -> int:
    """Of what one rank sends another, most rows."""
    rows: dict[tuple[int, int], int] = defaultdict(int)
    for s in route:
        if s.src_rank != s.dst_rank:
            rows[s.src_rank, s.dst_rank] += s.num_rows
    return max(rows.values(), default=0)
