"""A plan that is fine, for tests that spoil it."""

from __future__ import annotations

GOOD = """\
name = "good"
world_size = 4
microbatches = 4

[modules.vision]
first_rank = 0
layout.dp = 4

[modules.llm]
ranks = [0, 1, 2, 3]
layout = { dp = 2, pp = 2 }

[[boundaries]]
producer = "vision"
consumer = "llm"

[schedule]
encoder = "three_phase"

[model.vision]
kind = "vision"
layers = 1
hidden = 16
heads = 2
ffn = 16
patch = 4
merge = 2

[model.llm]
kind = "decoder"
layers = 2
hidden = 24
heads = 4
kv_heads = 2
ffn = 16
vocab = 40

[data]
batch_size = 16

[training]
steps = 3
"""


def spoiled(*changes: tuple[str, str]) -> str:
    """The good plan with each text, which occurs once, replaced by another."""
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    return text
