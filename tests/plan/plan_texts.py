"""Plans without model sizes: what is decided needs none."""

from __future__ import annotations

from hetsched.plan import Plan, parse_plan


def plan_of(
    vision: str, llm: str, *, world_size: int, microbatches: int = 2, schedule: str = "", boundary: str = ""
) -> Plan:
    """A plan of an encoder and an LLM; all texts are bodies of inline tables."""
    return parse_plan(f"""
name = "deciding"
world_size = {world_size}
microbatches = {microbatches}
modules = {{ vision = {{ hidden = 8, {vision} }}, llm = {{ hidden = 8, {llm} }} }}
boundaries = [{{ producer = "vision", consumer = "llm" {boundary} }}]
schedule = {{ {schedule} }}
""")
