"""The order of messages that torch's pipeline runtime relies on.

There a message has no tag: between two ranks, the n-th to be received is the n-th that was sent, whatever stage or
direction it is of. Our programs have a channel for each pair of stages and direction, and the checker holds receives
to the order of sends within a channel, so a program with transfers that is for torch is held to this order too.

Source: torch/distributed/pipelining/schedules.py, ``_batch_p2p``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hetsched.errors import ScheduleError
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program

# From which stage a message leaves and at which it arrives, seen from the stage of the action.
_OFFSETS = {Kind.SEND_F: (0, 1), Kind.RECV_F: (-1, 0), Kind.SEND_B: (0, -1), Kind.RECV_B: (1, 0)}
_SENDS = frozenset({Kind.SEND_F, Kind.SEND_B})


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a message: an action of a lane, and the message as (stage it leaves, stage it reaches, microbatch)."""

    lane: int
    position: int
    action: Action
    message: tuple[int, int, int | None]

    def __str__(self) -> str:
        return f"{self.action} (lane {self.lane}, action {self.position})"


def check_torch_order(program: Program) -> None:
    """Refuses a program whose messages torch's runtime would mix up.

    Args:
        program: of one module, each stage on one lane. Messages without another end are the checker's business.

    Raises:
        ScheduleError: a lane does not receive in the order in which another sends to it.
    """
    sent, received = _ends(program)
    for lanes, receives in received.items():
        for there, here in zip(sent[lanes], receives, strict=False):
            if there.message != here.message:
                raise ScheduleError(
                    f"{here} would get the message of {there} in torch's runtime: between two ranks messages "
                    "arrive in the order sent, whatever stages they are of"
                )


_ByLanes = dict[tuple[int, int], list[_End]]


def _ends(program: Program) -> tuple[_ByLanes, _ByLanes]:
    """(sending lane, receiving lane) -> the sends and the receives, each in the order of their lane's list."""
    (module,) = program.topology.modules
    lane_of = {stage: lane for stage, ((lane,),) in enumerate(module.stages)}
    sent, received = defaultdict[tuple[int, int], list[_End]](list), defaultdict[tuple[int, int], list[_End]](list)
    for lane, actions in enumerate(program.lanes):
        for position, action in enumerate(actions):
            if action.kind not in _OFFSETS:
                continue
            source, target = (action.stage + offset for offset in _OFFSETS[action.kind])
            if source in lane_of and target in lane_of:
                ends = sent if action.kind in _SENDS else received
                end = _End(lane, position, action, (source, target, action.first))
                ends[lane_of[source], lane_of[target]].append(end)
    return sent, received
