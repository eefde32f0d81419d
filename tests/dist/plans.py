"""Plans for the tests, written as one writes them: TOML."""

from __future__ import annotations

from hetsched.plan import Plan, parse_plan

MODEL = """
[model.vision]
kind = "vision"
layers = 2
hidden = 16
heads = 2
ffn = 24
patch = 4
merge = 2

[model.llm]
kind = "decoder"
layers = 4
hidden = 24
heads = 4
kv_heads = 2
ffn = 40
vocab = 50
"""


def plan_text(
    *,
    vision: str,
    llm: str,
    world_size: int,
    microbatches: int = 4,
    schedule: str = "",
    model: str = MODEL,
) -> str:
    """A float64 plan of a vision encoder and an LLM; ``vision`` and ``llm`` are the bodies of their tables."""
    return f"""
name = "test"
world_size = {world_size}
microbatches = {microbatches}
dtype = "float64"
seed = 3

[modules.vision]
{vision}

[modules.llm]
{llm}

[[boundaries]]
producer = "vision"
consumer = "llm"

[schedule]
{schedule}
{model}"""


def make_plan(**parts: object) -> Plan:
    """The plan of ``plan_text(**parts)``."""
    return parse_plan(plan_text(**parts))  # type: ignore[arg-type]
