"""Plans: the static half of what is decided, read from TOML."""

from hetsched.plan.load import load_plan, parse_plan
from hetsched.plan.sections import BoundaryPlan, DataPlan, ModulePlan, Plan, SchedulePlan, TrainingPlan

__all__ = ["BoundaryPlan", "DataPlan", "ModulePlan", "Plan", "SchedulePlan", "TrainingPlan", "load_plan", "parse_plan"]
