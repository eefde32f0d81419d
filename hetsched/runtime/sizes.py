"""How large the messages of a step are, which every rank knows for all."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from hetsched.layout.tokens import IntArray
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
        held = [held for m in range(plan.microbatches) for held in step.shares[module, m]]
        num_rows = max(of.num_tokens(cp) for of in held for cp in of.cp_ranks)
        for stage in range(grid.layout.num_stages - 1):
            for is_forward in (True, False):
                channel = channels.of(module, stage, is_forward=is_forward)
                largest[channel.tag] = num_rows * channel.row_bytes
    for boundary in plan.boundaries:
        channel = channels.of_signals(boundary.producer)
        largest[channel.tag] = channel.row_bytes
    return dict(largest)


def _most_rows(route: IntArray) -> int:
    """Of what one rank sends another, most rows."""
    sent = route[route[:, 0] != route[:, 2]]
    if not len(sent):
        return 0
    _, pair = np.unique(sent[:, [0, 2]], axis=0, return_inverse=True)
    return int(np.bincount(pair.ravel(), sent[:, 4]).max())
