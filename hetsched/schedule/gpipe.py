"""GPipe: all forwards, then all backwards.

    lane 0  F0 F1 F2 F3                B0    B1    B2    B3
    lane 1     F0 F1 F2 F3          B0    B1    B2    B3
    lane 2        F0 F1 F2 F3    B0    B1    B2    B3
    lane 3           F0 F1 F2 F3 B0 B1 B2 B3

Source: Huang et al. 2019 (arXiv 1811.06965), with backwards in the order of the forwards. Bubble
(P - 1)(F + B), live activations M on every lane.
"""

from __future__ import annotations

from hetsched.schedule.action import Action, Kind, act


def gpipe(num_lanes: int, num_microbatches: int, *, module: str = "llm") -> tuple[tuple[Action, ...], ...]:
    """For each of ``num_lanes`` lanes, its compute actions; stage s of the module is on lane s."""
    return tuple(
        tuple(act(module, stage, kind, m) for kind in (Kind.F, Kind.B) for m in range(num_microbatches))
        for stage in range(num_lanes)
    )
