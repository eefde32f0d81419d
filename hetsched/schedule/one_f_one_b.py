"""1F1B: as many forwards as there are stages left, then one forward and one backward in turn.

    lane 0  F0 F1 F2 F3 B0 F4 B1 F5 B2 ...
    lane 1     F0 F1 F2 B0 F3 B1 F4 B2 ...
    lane 2        F0 F1 B0 F2 B1 F3 B2 ...
    lane 3           F0 B0 F1 B1 F2 B2 ...

Source: Narayanan et al. 2021 (arXiv 2104.04473), section 2.2.1 and figure 4 (top). Bubble (P - 1)(F + B), live
activations of lane s min(P - s, M).
"""

from __future__ import annotations

from hetsched.schedule.action import Action, Kind, act


def one_f_one_b(num_lanes: int, num_microbatches: int, *, module: str = "llm") -> tuple[tuple[Action, ...], ...]:
    """For each of ``num_lanes`` lanes, its compute actions; stage s of the module is on lane s."""
    return tuple(_lane(stage, num_lanes, num_microbatches, module) for stage in range(num_lanes))


def _lane(stage: int, num_lanes: int, num_microbatches: int, module: str) -> tuple[Action, ...]:
    num_warmup = min(num_lanes - stage - 1, num_microbatches)
    actions = [act(module, stage, Kind.F, m) for m in range(num_warmup)]
    for m in range(num_warmup, num_microbatches):
        actions.append(act(module, stage, Kind.F, m))
        actions.append(act(module, stage, Kind.B, m - num_warmup))
    actions += [act(module, stage, Kind.B, m) for m in range(num_microbatches - num_warmup, num_microbatches)]
    return tuple(actions)
