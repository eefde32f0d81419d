"""ZB-H1: 1F1B with the weight gradients put off, lane s by s microbatches, so that they fill the cooldown.

    lane 0  F0 F1 F2 F3             I0 W0 F4 I1 W1 F5 I2 W2    I3 W3    I4 W4    I5 W5
    lane 1     F0 F1 F2          I0 F3 I1 W0 F4 I2 W1 F5 I3 W2    I4 W3    I5 W4 W5
    lane 2        F0 F1       I0 F2 I1 F3 I2 W0 F4 I3 W1 F5 I4 W2    I5 W3 W4 W5
    lane 3           F0    I0 F1 I1 F2 I2 F3 I3 W0 F4 I4 W1 F5 I5 W2 W3 W4 W5

Source: Qi et al. 2023 (arXiv 2401.10241), ZB-H1. Bubble (P - 1)(F + I - W) where W <= min(F, I), live activations
min(P, M) on every lane, until W.
"""

from __future__ import annotations

from hetsched.schedule.action import Action, Kind, act


def zb_h1(num_lanes: int, num_microbatches: int, *, module: str = "llm") -> tuple[tuple[Action, ...], ...]:
    """For each of ``num_lanes`` lanes, its compute actions; stage s of the module is on lane s."""
    return tuple(_lane(stage, num_lanes, num_microbatches, module) for stage in range(num_lanes))


def _lane(stage: int, num_lanes: int, num_microbatches: int, module: str) -> tuple[Action, ...]:
    num_warmup = min(num_lanes - stage - 1, num_microbatches)
    actions = [act(module, stage, Kind.F, m) for m in range(num_warmup)]
    num_weight = 0
    for backward in range(num_microbatches):
        forward = num_warmup + backward
        if forward < num_microbatches:
            actions.append(act(module, stage, Kind.F, forward))
        actions.append(act(module, stage, Kind.I, backward))
        if backward >= stage:
            actions.append(act(module, stage, Kind.W, num_weight))
            num_weight += 1
    actions += [act(module, stage, Kind.W, m) for m in range(num_weight, num_microbatches)]
    return tuple(actions)
