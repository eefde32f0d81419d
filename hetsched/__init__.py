"""hetsched: pipeline schedules for multimodal training in which every module keeps its own parallel layout.

Importing it does not import torch: ``Engine`` and what belongs to it are loaded when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hetsched.batch import Batch, DataSource, Item, Placeholder, Sample
from hetsched.errors import DataError, HetschedError, JobError, PlanError, ScheduleError
from hetsched.plan import Plan, load_plan, parse_plan

if TYPE_CHECKING:
    from hetsched.parallel.sharded import sharded_attention as sharded_attention
    from hetsched.runtime.engine import Engine as Engine
    from hetsched.runtime.mesh import ModuleMesh as ModuleMesh
    from hetsched.runtime.report import EvaluationReport as EvaluationReport
    from hetsched.runtime.report import StepReport as StepReport
    from hetsched.runtime.stage import BoundaryRows as BoundaryRows
    from hetsched.runtime.stage import StageMeta as StageMeta
    from hetsched.train.launch import launch as launch

_NEEDS_TORCH = {
    "Engine": "hetsched.runtime.engine",
    "ModuleMesh": "hetsched.runtime.mesh",
    "StepReport": "hetsched.runtime.report",
    "EvaluationReport": "hetsched.runtime.report",
    "BoundaryRows": "hetsched.runtime.stage",
    "StageMeta": "hetsched.runtime.stage",
    "launch": "hetsched.train.launch",
    "sharded_attention": "hetsched.parallel.sharded",
}

__all__ = [
    "Batch",
    "DataError",
    "DataSource",
    "HetschedError",
    "Item",
    "JobError",
    "Placeholder",
    "Plan",
    "PlanError",
    "Sample",
    "ScheduleError",
    "load_plan",
    "parse_plan",
    *_NEEDS_TORCH,
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'hetsched' has no attribute {name!r}")
    return getattr(import_module(_NEEDS_TORCH[name]), name)
