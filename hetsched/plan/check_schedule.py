"""What must hold of a plan's ``[schedule]``."""

from __future__ import annotations

from hetsched.config import require
from hetsched.plan.sections import Plan

_OF = {"window": "window", "in_flight": "fill", "budget": "fill"}
"""Options, and the encoder policy that has them."""
_SINGLE_STAGE = ("window", "fill")


def check_schedule(plan: Plan) -> None:
    """Raise PlanError for an option that the encoder policy does not have, or an encoder that it cannot place."""
    schedule = plan.schedule
    for name, policy in _OF.items():
        value, field = getattr(schedule, name), f"schedule.{name}"
        if value is None:
            continue
        require(value >= 1, f"{name} = {value}", field=field, fix="use at least 1")
        require(
            schedule.encoder == policy,
            f"{name} = {value}, but encoder policy {schedule.encoder} has no such option",
            field=field,
            fix=f"remove it, or write encoder = {policy!r}",
        )
    require(
        schedule.split_items or schedule.encoder == "fill",
        f"split_items = false, but encoder policy {schedule.encoder} always shares a microbatch's items",
        field="schedule.split_items",
        fix="remove it, or write encoder = 'fill'",
    )
    for name in plan.modules:
        stages = plan.modules[name].layout.num_stages
        require(
            name == plan.sink or stages == 1 or schedule.encoder not in _SINGLE_STAGE,
            f"module {name}: {stages} stages, but encoder policy {schedule.encoder} places encoders of one stage",
            field=f"modules.{name}.layout.pp",
            fix="write pp = 1 and raise dp, or schedule.encoder = 'three_phase' or 'stage0'",
        )
