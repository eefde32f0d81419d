"""What a step's work costs where nobody has measured it: the multiplications of its matrices and of attention.

The unit of time means nothing: only the ratios say something. A backward costs its forward once for the inputs'
gradient, and once for the weights'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise

from hetsched.batch import Item
from hetsched.graph import replicas_on_lanes
from hetsched.layout.assign import attention_cost
from hetsched.layout.shares import Cost, Share
from hetsched.plan import Plan
from hetsched.plan.model import LLMConfig, VisionConfig, stage_layers
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder import EncoderLoads, ItemCost
from hetsched.schedule.table import ActionTable, Pattern
from hetsched.sim.costs import Costs

_TYPICAL_ITEMS = 16
_SCALE = 1000
"""So that what is divided by replicas stays an integer that says something."""


def stage_work(plan: Plan, module: str, stage: int) -> Cost:
    """Multiplications of a stage's forward for one sequence, from its length."""
    weights, attention = _sizes(plan, module, stage)
    return lambda num_tokens: attention_cost(num_tokens, quadratic=attention, linear=weights)


def estimate_loads(
    plan: Plan, shares: Sequence[Sequence[Share]], items: Mapping[str, Sequence[Sequence[Item]]]
) -> EncoderLoads:
    """The loads of a batch.

    Args:
        plan: the job's plan.
        shares: of the sink, for each microbatch and replica; a microbatch takes as long as its heaviest share.
        items: for each encoder the items of each microbatch; the replicas on one lane share that lane's.
    """
    forwards, cp = [], plan.modules[plan.sink].layout.cp
    for stage in range(plan.modules[plan.sink].layout.num_stages):
        cost = stage_work(plan, plan.sink, stage)
        # Context-parallel ranks share a replica's work evenly.
        forwards.append([max(sum(map(cost, share.lengths)) for share in replicas) // cp for replicas in shares])
    costs = {encoder: estimate_items(plan, encoder, every) for encoder, every in items.items()}
    return EncoderLoads(_durations(plan, forwards), costs)


def estimate_items(plan: Plan, encoder: str, items: Sequence[Sequence[Item]]) -> list[list[ItemCost]]:
    """The cost of each item of each microbatch on one lane, whose replicas share it."""
    cost = _item_costs(plan, encoder)
    return [[cost(item.num_inputs) for item in of_microbatch] for of_microbatch in items]


def typical_loads(plan: Plan) -> EncoderLoads:
    """The loads of a step whose batch nobody has seen: microbatches are alike, as in ``typical_costs``."""
    costs, items = typical_costs(plan), {}
    for boundary in plan.boundaries:
        whole = [
            costs.durations_ns.values[Pattern(kind, boundary.producer, 0)] * _num_lanes(plan, boundary.producer)
            for kind in (Kind.F, Kind.B)
        ]
        ends = [[i * work // _TYPICAL_ITEMS for work in whole] for i in range(_TYPICAL_ITEMS + 1)]
        of_microbatch = [ItemCost(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)]
        items[boundary.producer] = [of_microbatch] * plan.microbatches
    return EncoderLoads(lambda action, lane: costs.duration_ns(action, lane=lane), items)


def typical_costs(plan: Plan) -> Costs:
    """Costs by stage of microbatches that are alike, shared evenly by a module's replicas.

    Attention is left out, and half of the sink's rows are taken to come from encoders.
    """
    durations: dict[Pattern, int] = {}
    for name, module in plan.modules.items():
        rows = _SCALE if name == plan.sink else _SCALE * _rows_encoded(plan, name) // (2 * len(plan.boundaries))
        for stage in range(module.layout.num_stages):
            weights, _ = _sizes(plan, name, stage)
            forward = rows * weights // (module.layout.dp * module.layout.cp)
            durations[Pattern(Kind.F, name, stage)] = forward
            for kind, factor in _backward_factors(plan, name).items():
                durations[Pattern(kind, name, stage)] = factor * forward
    return Costs(ActionTable(durations))


def _item_costs(plan: Plan, encoder: str) -> Callable[[int], ItemCost]:
    """From an item's inputs to its work on one lane."""
    of_stages = [stage_work(plan, encoder, stage) for stage in range(plan.modules[encoder].layout.num_stages)]
    # The replicas of a lane share its items.
    num_replicas = -(-plan.modules[encoder].layout.dp // _num_lanes(plan, encoder))
    backward = _backward_factors(plan, encoder)[Kind.B]

    @cache
    def cost(num_inputs: int) -> ItemCost:
        forward = sum(work(num_inputs) for work in of_stages) // num_replicas
        return ItemCost(forward, backward * forward)

    return cost


def _num_lanes(plan: Plan, encoder: str) -> int:
    return len(replicas_on_lanes(plan, encoder))


def _durations(plan: Plan, forwards: Sequence[Sequence[int]]) -> Callable[[Action, int], int]:
    """Of the sink's actions, from the work of each stage and microbatch."""
    factors = {Kind.F: 1, **_backward_factors(plan, plan.sink)}
    return lambda action, lane: sum(
        factors[part.kind] * forwards[part.stage][m] for part in action.flat() for m in part.microbatches
    )


def _backward_factors(plan: Plan, module: str) -> dict[Kind, int]:
    """Costs in forwards: a frozen module's weights need no gradient."""
    of_weights = 0 if plan.modules[module].frozen else 1
    return {Kind.B: 1 + of_weights, Kind.I: 1, Kind.W: of_weights}


def _rows_encoded(plan: Plan, encoder: str) -> int:
    """Rows of the encoder for one of the sink's."""
    config = None if plan.model is None else plan.model[encoder]
    return config.patches_per_row if isinstance(config, VisionConfig) else 1


def _sizes(plan: Plan, module: str, stage: int) -> tuple[int, int]:
    """Multiplications of a stage for each row, and for each pair of rows.

    A module whose sizes the plan does not state is taken to have one layer a stage, with matrices of 12 hidden^2.
    """
    if plan.model is None:
        hidden = plan.hidden(module)
        return 12 * hidden**2, 2 * hidden
    config, num_stages = plan.model[module], plan.modules[module].layout.num_stages
    layers = len(stage_layers(config.layers, stage=stage, num_stages=num_stages, module=module))
    weights = layers * _layer_weights(config)
    if isinstance(config, LLMConfig) and stage == num_stages - 1:
        weights += config.hidden * config.vocab
    return weights, 2 * layers * config.hidden


def _layer_weights(config: VisionConfig | LLMConfig) -> int:
    if isinstance(config, VisionConfig):
        return 4 * config.hidden**2 + 2 * config.hidden * config.ffn
    kv_hidden = config.hidden * config.kv_heads // config.heads
    return 2 * config.hidden**2 + 2 * config.hidden * kv_hidden + 3 * config.hidden * config.ffn
