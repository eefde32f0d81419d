"""Interleaved 1F1B: every lane has several stages, and works on one group of microbatches per stage at a time.

Two lanes, stages 0 and 2 on lane 0, 1 and 3 on lane 1, groups of two microbatches:

    lane 0  0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 ...
    lane 1      1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 ...

Source: Narayanan et al. 2021 (arXiv 2104.04473), section 2.2.2 and figure 4 (bottom). Where P divides M the bubble is
(P - 1)(F + B) for F and B of one stage, and lane s has min(2(P - s - 1) + (v - 1)P + 1, vM) live activations; otherwise
groups are larger than P, and the simulator says what that costs.
"""

from __future__ import annotations

from hetsched.schedule.action import Action, Kind, act


def interleaved(
    num_lanes: int, num_microbatches: int, *, module: str = "llm", num_virtual: int = 2
) -> tuple[tuple[Action, ...], ...]:
    """For each of ``num_lanes`` lanes, its compute actions; stage s of the module is on lane ``s % num_lanes``.

    Args:
        num_lanes: pipeline ranks.
        num_microbatches: microbatches of the step.
        module: name of the module.
        num_virtual: stages on each lane.
    """
    return tuple(_lane(lane, num_lanes, num_microbatches, module, num_virtual) for lane in range(num_lanes))


def _lane(lane: int, num_lanes: int, num_microbatches: int, module: str, num_virtual: int) -> tuple[Action, ...]:
    stages = range(lane, num_virtual * num_lanes, num_lanes)
    groups = _groups(num_lanes, num_microbatches)
    forwards = [act(module, stage, Kind.F, m) for group in groups for stage in stages for m in group]
    backwards = [act(module, stage, Kind.B, m) for group in groups for stage in reversed(stages) for m in group]
    num_warmup = min(2 * (num_lanes - lane - 1) + (num_virtual - 1) * len(groups[0]), len(forwards))
    actions = forwards[:num_warmup]
    for forward, backward in zip(forwards[num_warmup:], backwards, strict=False):
        actions += [forward, backward]
    return tuple(actions + backwards[len(forwards) - num_warmup :])


def _groups(num_lanes: int, num_microbatches: int) -> list[range]:
    """Groups of P microbatches or, where P does not divide M, of a few more: smaller ones would wait in a circle."""
    num_groups = max(1, num_microbatches // num_lanes)
    ends = [-(-num_microbatches * (i + 1) // num_groups) for i in range(num_groups)]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
