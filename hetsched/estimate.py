"""Costs of a plan's step where nobody has measured them: from the weights that each stage multiplies by."""

from __future__ import annotations

from hetsched.plan import Plan
from hetsched.plan.model import LLMConfig, VisionConfig, stage_layers
from hetsched.sim.costs import Costs

_NS_PER_MILLION_WEIGHTS = 1_000_000_000
"""A unit of time and no more: only the ratios between modules say something."""


def estimate_costs(plan: Plan) -> Costs:
    """Forward costs in proportion to a stage's weights, backward twice as much.

    An encoder's microbatch is shared by its replicas, a stage of the sink by its own. Modules whose sizes
    the plan does not state cost one unit a stage.
    """
    durations: dict[str, int] = {}
    for name, module in plan.modules.items():
        for stage in range(module.layout.num_stages):
            weights = 1_000_000 if plan.model is None else _stage_weights(plan, name, stage)
            forward = weights * _NS_PER_MILLION_WEIGHTS // 1_000_000 // module.layout.dp
            durations |= {f"{name}:{stage}F": forward, f"{name}:{stage}B": 2 * forward}
    return Costs.constant(**durations)


def _stage_weights(plan: Plan, name: str, stage: int) -> int:
    """Weights of the matrices that every row of the stage is multiplied by."""
    assert plan.model is not None
    config = plan.model[name]
    num_stages = plan.modules[name].layout.num_stages
    layers = len(stage_layers(config.layers, stage=stage, num_stages=num_stages, module=name))
    total = layers * _layer_weights(config)
    if isinstance(config, LLMConfig) and stage == num_stages - 1:
        total += config.hidden * config.vocab
    return total


def _layer_weights(config: VisionConfig | LLMConfig) -> int:
    if isinstance(config, VisionConfig):
        return 4 * config.hidden**2 + 2 * config.hidden * config.ffn
    kv_hidden = config.hidden * config.kv_heads // config.heads
    return 2 * config.hidden**2 + 2 * config.hidden * kv_hidden + 3 * config.hidden * config.ffn
