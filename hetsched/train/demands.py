"""What ``hetsched train`` demands of a plan beyond what every job does. Needs no torch: ``check`` asks it too."""

from __future__ import annotations

from hetsched.errors import PlanError
from hetsched.plan import Plan
from hetsched.plan.model import LLMConfig, VisionConfig, divisors
from hetsched.train.questions import ENCODER, TOKENIZER
from hetsched.train.scans import SIDE


def check_sections(plan: Plan) -> None:
    """Refuse a plan without a section that training needs, or whose modules the data is not for. Raises PlanError."""
    for section in ("model", "data", "training"):
        if getattr(plan, section) is None:
            fix = "add it; `hetsched train` needs it"
            raise PlanError(f"there is no [{section}]", field=section, fix=fix, source=plan.source)
    encoders = [name for name in plan.modules if name != plan.sink]
    if encoders != [ENCODER]:
        problem = f"the digits are images for one encoder, {ENCODER!r}; the plan has {', '.join(encoders) or 'none'}"
        raise PlanError(problem, field="modules", fix=f"have one encoder, named {ENCODER}", source=plan.source)
    (boundary,) = plan.boundaries
    if boundary.stage != 0:
        # The others would drop the rows without a word.
        problem = (
            f"boundary {boundary.name}: stage {boundary.stage}, but the reference model takes rows at stage 0 alone"
        )
        raise PlanError(problem, field="boundaries[0].stage", fix="write 0, or leave it out", source=plan.source)


def check_sizes(plan: Plan) -> None:
    """What the data demands of ``[model]``; the ranks would each say it once they are there. Raises PlanError."""
    assert plan.model is not None
    vision, llm = plan.model[ENCODER], plan.model[plan.sink]
    assert isinstance(vision, VisionConfig) and isinstance(llm, LLMConfig)
    if llm.vocab < TOKENIZER.vocab_size:
        raise PlanError(
            f"vocab={llm.vocab}, but the digits' questions are written with {TOKENIZER.vocab_size} tokens",
            field=f"model.{plan.sink}.vocab",
            fix=f"write at least {TOKENIZER.vocab_size}",
            source=plan.source,
        )
    if SIDE % (vision.patch * vision.merge):
        raise PlanError(
            f"patch={vision.patch} and merge={vision.merge}: squares of {vision.patch * vision.merge} pixels do not "
            f"tile the {SIDE} of a digit",
            field=f"model.{ENCODER}.patch",
            fix=f"choose them so that patch * merge is one of {divisors(SIDE)}",
            source=plan.source,
        )
