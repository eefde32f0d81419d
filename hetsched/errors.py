"""The errors a user can meet; each says where, which value, and what to change."""

from __future__ import annotations


class HetschedError(Exception):
    """Base of every error that hetsched raises on purpose."""


class PlanError(HetschedError):
    """A plan that cannot be run as written.

    Args:
        problem: what is wrong, naming the module or section and the value.
        field: dotted path of the offending key, e.g. ``modules.vision.layout.tp``.
        fix: what to write instead.
        source: the plan file, if the plan came from one.
    """

    def __init__(self, problem: str, *, field: str, fix: str, source: str | None = None) -> None:
        self.problem, self.field, self.fix, self.source = problem, field, fix, source
        where = f"{field} in {source}" if source else field
        super().__init__(f"{problem}\n  field {where}\n  fix: {fix}")


class DataError(HetschedError):
    """A sample or item whose contents contradict its description or the model."""


class ScheduleError(HetschedError):
    """A program that is not sound: the message holds the fault, the lanes and an arrow."""


class JobError(HetschedError):
    """A distributed job that cannot start or go on; the message names the rank."""
