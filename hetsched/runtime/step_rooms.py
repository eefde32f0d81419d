"""What transports are told of a step's arrivals: how large they are, and where each lies; ranks know it of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hetsched.layout.tokens import IntArray
from hetsched.lower.rooms import LaneRooms, Rooms
from hetsched.plan import Plan
from hetsched.runtime.channels import Channels, key_of
from hetsched.runtime.exchange import Transfer
from hetsched.schedule.program import Program
from hetsched.stepplan import StepPlan


@dataclass(frozen=True)
class StepRooms:
    """Where the rows of a step arrive in memory that is lent.

    Args:
        by_rank: by the channel's tag and the rank that receives.
        ends: for each lane, what nothing reads after the action at a place of its list.
    """

    by_rank: Mapping[tuple[int, int], Rooms] = field(default_factory=dict)
    ends: Sequence[Mapping[int, Sequence[Transfer]]] = ()


def step_rooms(program: Program, lanes: Sequence[Sequence[int]], channels: Channels) -> StepRooms:
    """The rooms of a program.

    Args:
        program: lowered.
        lanes: the ranks of each.
        channels: of the plan.
    """
    by_rank: dict[tuple[int, int], Rooms] = {}
    ends = []
    for ranks, actions in zip(lanes, program.lanes, strict=True):
        rooms = LaneRooms.of(actions)
        for key, of in rooms.rooms.items():
            by_rank |= {(channels.of(key_of(*key)).tag, rank): of for rank in ranks}
        ends.append(
            {
                place: [Transfer(channels.of(key_of(a.edge, a.stage, a.kind)), a.microbatch) for a in arrivals]
                for place, arrivals in rooms.ends.items()
            }
        )
    return StepRooms(by_rank, ends)


def largest_rooms(plan: Plan, step: StepPlan, channels: Channels) -> dict[int, int]:
    """Bytes of the most that arrives on a rank in one transfer of each channel, by tag; of signals, which are counted
    where they arrive, none."""
    largest: dict[int, int] = defaultdict(int)
    for (edge, _), crossing in step.crossings.items():
        for is_forward, route in ((True, crossing.forward), (False, crossing.backward)):
            channel = channels.of((edge, 0, is_forward))
            wanted = map(crossing.num_arriving, crossing.index) if is_forward else crossing.produced.values()
            num_rows = max(_most_rows(route), *wanted, 0)
            largest[channel.tag] = max(largest[channel.tag], num_rows * channel.row_bytes)
    for module, grid in plan.grids.items():
        held = [held for m in range(plan.microbatches) for held in step.shares[module, m]]
        num_rows = max(of.num_tokens(cp) for of in held for cp in of.cp_ranks)
        for stage in range(grid.layout.num_stages - 1):
            for is_forward in (True, False):
                channel = channels.of((module, stage, is_forward))
                largest[channel.tag] = num_rows * channel.row_bytes
    return dict(largest)


def _most_rows(route: IntArray) -> int:
    """Of what others send one rank, most rows: more than arrive where rows are added up."""
    sent = route[route[:, 0] != route[:, 2]]
    return int(np.bincount(sent[:, 2], sent[:, 4]).max()) if len(sent) else 0
