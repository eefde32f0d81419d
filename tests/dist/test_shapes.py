"""Which steps may load kernels: sizes that no step before had, in four classes an octave."""

from __future__ import annotations

from hetsched.batch import Sample
from hetsched.runtime.shapes import SeenShapes
from hetsched.stepplan import StepPlan, plan_step
from tests.dist.plans import make_plan
from tests.dist.ragged import RaggedSource

PLAN = make_plan(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.pp = 2", world_size=2)


def step_of(*, num_tokens: int, is_training: bool = True, images: bool = False) -> StepPlan:
    if images:
        source = RaggedSource(0, items="many")
        return plan_step(PLAN, [source.describe(i) for i in range(2 * PLAN.microbatches)], is_training=is_training)
    samples = [Sample(i, num_tokens, weight=1) for i in range(2 * PLAN.microbatches)]
    return plan_step(PLAN, samples, is_training=is_training)


def test_sizes_are_new_once() -> None:
    seen = SeenShapes()
    assert seen.add(step_of(num_tokens=40), is_training=True)
    assert not seen.add(step_of(num_tokens=40), is_training=True)
    assert not seen.add(step_of(num_tokens=43), is_training=True), "80 and 86 tokens are in one class"
    assert seen.add(step_of(num_tokens=48), is_training=True)


def test_an_evaluation_and_the_first_images_are_new() -> None:
    seen = SeenShapes()
    seen.add(step_of(num_tokens=40), is_training=True)
    assert seen.add(step_of(num_tokens=40, is_training=False), is_training=False)
    assert seen.add(step_of(num_tokens=40, images=True), is_training=True)
    assert not seen.add(step_of(num_tokens=40, images=True), is_training=True)
