"""Random batches: samples with items of several encoders, shared between samples and within one."""

from __future__ import annotations

from hypothesis import strategies as st

from hetsched.batch import Item, Placeholder, Sample
from hetsched.layout.shares import Share
from hetsched.stepplan import StepPlan


def item_of(key: int, module: str = "vision") -> Item:
    """An item whose sizes depend on its key."""
    return Item(module, key, num_inputs=4 * (1 + key % 4), num_rows=1 + key % 4)


@st.composite
def batches(draw: st.DrawFn, *, modules: tuple[str, ...] = ("vision",), max_samples: int = 8) -> tuple[Sample, ...]:
    """Samples whose placeholders are ascending and disjoint; some without any."""
    return tuple(_sample(draw, index, modules) for index in range(draw(st.integers(1, max_samples))))


def _sample(draw: st.DrawFn, index: int, modules: tuple[str, ...]) -> Sample:
    start, placeholders = draw(st.integers(0, 2)), []
    for key in draw(st.lists(st.integers(0, 6), max_size=4)):
        item = item_of(key, draw(st.sampled_from(modules)))
        placeholders.append(Placeholder(item, start))
        start += item.num_rows + draw(st.integers(0, 2))
    return Sample(index, start + draw(st.integers(1, 5)), draw(st.integers(1, 3)), tuple(placeholders))


def shares_of(step: StepPlan, module: str, microbatch: int) -> list[Share]:
    """What each replica of a module works on."""
    return [held.share for held in step.shares[module, microbatch]]
