"""Plans that nobody would think of: any layouts on any ranks, any schedule and policy, one encoder or two."""

from __future__ import annotations

from random import Random

from hetsched.errors import PlanError
from hetsched.plan import Plan
from tests.dist.plans import make_plan

MOST_RANKS = 6
VIRTUAL = {"zb-v": 2, "dualpipev": 2}
"""Virtual stages that a pipeline schedule asks for."""


def random_plan(seed: int) -> tuple[Plan, str] | None:
    """A plan and the items to train it on, as of ``tests.dist.work``; None where what was drawn is no plan."""
    random = Random(seed)
    world_size = random.randint(1, MOST_RANKS)
    pipeline = random.choice(["gpipe", "1f1b", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipev"])
    has_audio = random.random() < 0.4
    cp = random.choice([1, 1, 1, 2, 3])
    cut = f"shortest_cut = {random.choice([1, 5, 20])}" if cp > 1 else ""
    vpp = VIRTUAL.get(pipeline, random.choice([1, 2]) if pipeline == "interleaved" else 1)
    try:
        plan = make_plan(
            vision=_module(random, world_size, "frozen = true" * (random.random() < 0.1), dp=(1, 4), pp=(1, 2)),
            audio=_module(random, world_size, "frozen = true" * (random.random() < 0.3), dp=(1, 3))
            if has_audio
            else None,
            llm=_module(random, world_size, cut, dp=(1, 3), cp=(cp, cp), pp=(1, 4), vpp=(vpp, vpp)),
            world_size=world_size,
            microbatches=random.randint(1, 6),
            schedule=f'pipeline = "{pipeline}"\n{_encoder(random)}',
        )
    except PlanError:
        return None
    return plan, "many" if has_audio else random.choice(["many", "many", "few"])


def _module(random: Random, world_size: int, more: str, **bounds: tuple[int, int]) -> str:
    """The body of a module's table: degrees within their bounds, on ranks in any order."""
    degrees = {axis: random.randint(low, high) for axis, (low, high) in bounds.items()}
    num_ranks = degrees.get("dp", 1) * degrees.get("cp", 1) * degrees.get("pp", 1)
    ranks = random.sample(range(max(world_size, num_ranks)), num_ranks)
    if random.random() < 0.5:
        ranks.sort()
    layout = ", ".join(f"{axis} = {degree}" for axis, degree in degrees.items())
    return f"ranks = {ranks}\nlayout = {{ {layout} }}\n{more}"


def _encoder(random: Random) -> str:
    """The encoders' policy and its options."""
    policy = random.choice(["three_phase", "stage0", "window", "fill", "fill"])
    lines = [f'encoder = "{policy}"']
    if policy == "window":
        lines.append(f"window = {random.randint(1, 4)}")
    if policy == "fill" and random.random() < 0.5:
        lines.append(f"in_flight = {random.randint(1, 3)}")
    if policy == "fill" and random.random() < 0.3:
        lines.append("split_items = false")
    if random.random() < 0.3:
        lines.append("recompute = true")
    return "\n".join(lines)
