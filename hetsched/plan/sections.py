"""A plan: what is decided before any batch is seen, as frozen dataclasses that mirror the TOML file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from hetsched.layout.grid import Grid, Layout
from hetsched.layout.placement import StageOrder
from hetsched.plan.model import LLMConfig, VisionConfig
from hetsched.schedule.encoder import PlacementOptions
from hetsched.schedule.registry import PIPELINES

DType = Literal["float32", "float64", "bfloat16"]


@dataclass(frozen=True)
class ModulePlan:
    """``[modules.<name>]``: one node of the model graph.

    Args:
        layout: degrees of parallelism.
        first_rank: the grid is as many ranks as the layout needs, from this one on; or
        ranks: the grid's ranks, in grid order (tp fastest, then cp, dp, pp).
        hidden: width of the rows between its stages; taken from ``[model.<name>]`` if that is given.
        frozen: its parameters are not trained.
        shortest_cut: tokens from which on a sample may be cut over context-parallel ranks; see
            hetsched.layout.dispatch.plan_tokens, whose default it takes if left out.
    """

    layout: Layout = field(default_factory=Layout)
    first_rank: int | None = None
    ranks: tuple[int, ...] | None = None
    hidden: int | None = None
    frozen: bool = False
    shortest_cut: int | None = None


@dataclass(frozen=True)
class BoundaryPlan:
    """``[[boundaries]]``: rows of ``producer``'s last stage enter ``consumer``.

    Args:
        producer, consumer: module names.
        stage: the consumer's stage at which they enter.
        hidden: width of the rows; the consumer's if left out.
        dtype: of the rows on the wire; the plan's if left out.
    """

    producer: str
    consumer: str
    stage: int = 0
    hidden: int | None = None
    dtype: DType | None = None

    @property
    def name(self) -> str:
        """The edge's name in programs: ``producer->consumer``."""
        return f"{self.producer}->{self.consumer}"


@dataclass(frozen=True)
class SchedulePlan:
    """``[schedule]``: the pipeline schedule of the module that computes the loss, and where encoders go.

    Args:
        pipeline: a name in hetsched.schedule.registry.PIPELINES.
        encoder: a name in hetsched.schedule.encoder.POLICIES.
        window, in_flight, recompute, split_items, budget: how the encoder's policy goes about it; see
            hetsched.schedule.encoder.PlacementOptions.
    """

    pipeline: Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipev"] = "1f1b"
    encoder: Literal["three_phase", "stage0", "window", "fill"] = "three_phase"
    window: int | None = None
    in_flight: int | None = None
    recompute: bool = False
    split_items: bool = True
    budget: int | None = None

    @property
    def options(self) -> PlacementOptions:
        """What the encoder's policy is given."""
        given = {} if self.window is None else {"window": self.window}
        return PlacementOptions(
            **given,
            in_flight=self.in_flight,
            recompute=self.recompute,
            split_items=self.split_items,
            budget=self.budget,
        )


@dataclass(frozen=True)
class DataPlan:
    """``[data]``: the samples of ``hetsched train``.

    Args:
        batch_size: samples of one step, over all microbatches and replicas.
        seed: fixes every sample.
        num_heldout: held-out samples to evaluate on.
    """

    batch_size: int
    name: Literal["digits"] = "digits"
    seed: int = 0
    num_heldout: int = 256


@dataclass(frozen=True)
class TrainingPlan:
    """``[training]``: optimizer and length of ``hetsched train``.

    Args:
        steps: optimizer steps.
        learning_rate: its peak, reached after ``warmup_steps`` and then lowered along a cosine to a tenth.
        weight_decay, beta2: of AdamW.
        clip_grad_norm: largest global gradient norm; 0 turns clipping off.
        evaluate_every: steps between evaluations; 0 evaluates at the end only.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    beta2: float = 0.99
    clip_grad_norm: float = 1.0
    evaluate_every: int = 0


@dataclass(frozen=True, eq=True)
class Plan:
    """Everything that is static in a job; every rank holds an equal one.

    Args:
        name: of the job.
        world_size: ranks of the job; every one of them belongs to some module.
        microbatches: of one step.
        modules: name -> its layout and ranks.
        boundaries: the edges of the module graph; they meet in one module, which computes the loss.
        capacity: tokens that the packed sequence of one microbatch and replica holds at most; no limit if left out.
        schedule, dtype, seed: see their types.
        transport: what carries rows between ranks, and with it the devices: ``gloo`` for CPUs, ``nccl`` for a GPU
            a rank, ``peer`` for that with copies into each other's memory, in place of NCCL's kernels, within a host.
        model: sizes of the reference model; left out by trainers that bring builders of their own.
        data, training: of ``hetsched train``; left out by trainers with a loop of their own.
        source: the file it came from, for messages; not part of the digest.
    """

    name: str
    world_size: int
    microbatches: int
    modules: dict[str, ModulePlan]
    boundaries: tuple[BoundaryPlan, ...] = ()
    schedule: SchedulePlan = field(default_factory=SchedulePlan)
    dtype: DType = "float32"
    seed: int = 0
    transport: Literal["gloo", "nccl", "peer"] = "gloo"
    capacity: int | None = None
    model: dict[str, VisionConfig | LLMConfig] | None = None
    data: DataPlan | None = None
    training: TrainingPlan | None = None
    source: str | None = field(default=None, init=False, compare=False)

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """Each module's grid."""
        return {name: Grid(m.layout, grid_ranks(m)) for name, m in self.modules.items()}

    @property
    def sink(self) -> str:
        """The module that computes the loss: the one that no boundary leaves."""
        producers = {b.producer for b in self.boundaries}
        return next(name for name in self.modules if name not in producers)

    def pipeline_rank(self, module: str, stage: int) -> int:
        """The pipeline rank (pp coordinate) of a stage of a module."""
        order = PIPELINES[self.schedule.pipeline].order if module == self.sink else StageOrder.LOOP
        return order.pipeline_rank(stage, pp=self.modules[module].layout.pp)

    def hidden(self, module: str) -> int:
        """Width of the rows between the stages of a module."""
        declared = self.modules[module].hidden
        if declared is None:
            assert self.model is not None
            declared = self.model[module].hidden
        return declared

    def boundary_hidden(self, boundary: BoundaryPlan) -> int:
        """Width of the rows that cross a boundary."""
        return self.hidden(boundary.consumer) if boundary.hidden is None else boundary.hidden

    def trains_behind(self, module: str) -> bool:
        """Whether anything whose rows reach ``module`` trains, so that its input needs a gradient."""
        return any(self.has_backward(b.producer) for b in self.boundaries if b.consumer == module)

    def has_backward(self, module: str) -> bool:
        """Whether the module takes part in the backward: it trains, or something behind it does."""
        return not self.modules[module].frozen or self.trains_behind(module)

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Hash of all that is decided here; equal on every rank of a job."""
        decided = dataclasses.asdict(self)
        del decided["source"]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


def grid_ranks(module: ModulePlan) -> tuple[int, ...]:
    """The ranks of a module's grid, as given or counted from ``first_rank``."""
    if module.ranks is not None:
        return module.ranks
    first = module.first_rank or 0
    return tuple(range(first, first + module.layout.num_ranks))
