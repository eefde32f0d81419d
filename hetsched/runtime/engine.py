"""The engine: a plan and builders in, training steps with exact gradients out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hetsched.batch import Batch
from hetsched.errors import DataError, JobError
from hetsched.graph import make_topology
from hetsched.ops import take_fault
from hetsched.parallel.copies import copies_of
from hetsched.parallel.data import sum_gradients
from hetsched.plan import Plan
from hetsched.runtime.agreement import check_copies, check_launch
from hetsched.runtime.channels import Channels
from hetsched.runtime.device import peak_memory_bytes, use_device
from hetsched.runtime.exchange import Exchange, StepSetup, Transport
from hetsched.runtime.executor import Executor, StepResult
from hetsched.runtime.measure.clock import clock_of
from hetsched.runtime.measure.context_meter import ContextMeter
from hetsched.runtime.measure.metered import MeteredTransport
from hetsched.runtime.measure.overlap import RankTraffic, overlaps
from hetsched.runtime.measure.recorder import Recorder
from hetsched.runtime.measure.trace import RankTrace, measured_timeline
from hetsched.runtime.mesh import ModuleMesh, make_groups, make_meshes
from hetsched.runtime.outputs import join_pieces, pieces_of
from hetsched.runtime.parameters import ambiguous_name, own_parameters, tensor_names
from hetsched.runtime.prepare import Prepared, prepare
from hetsched.runtime.report import (
    EvaluationReport,
    StepReport,
    context_figures,
    gather_figures,
    gather_objects,
    make_report,
    name_ranks,
    recorded_figures,
)
from hetsched.runtime.shapes import SeenShapes
from hetsched.runtime.step_rooms import StepRooms, largest_rooms, step_rooms
from hetsched.runtime.transport.by_host import ByHostCarrier
from hetsched.runtime.transport.checked import CheckedTransport
from hetsched.runtime.transport.gloo import GlooTransport
from hetsched.runtime.transport.links import make_links
from hetsched.runtime.transport.nccl import NcclCarrier
from hetsched.runtime.transport.streamed import Carrier, StreamedTransport
from hetsched.runtime.work import RankStep
from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.sim.overlap import Overlap
from hetsched.sim.timeline import Timeline
from hetsched.stepplan import StepPlan
from hetsched.stepprogram import step_program

Builder = Callable[[int, ModuleMesh], nn.Module]


class Engine:
    """Runs the steps of a plan on this rank.

    torch.distributed must be initialized with ``plan.world_size`` ranks, and every rank makes an engine of an
    equal plan.

    Args:
        plan: the job's plan.
        builders: for each module a function ``(stage, mesh) -> nn.Module``; the contract of a stage
            is in hetsched.runtime.stage.StageMeta. Replicas must start from the same values: build them from seeds, or
            load them. The first step compares them.
        timeout_s: seconds that a message may take before the job is given up.
        is_debug: announce every message (edge, microbatch, direction, shape, digest of the step) and compare; slow.

    Raises:
        TypeError: a builder returns no nn.Module, or the plan is no Plan.
        PlanError: the job has another number of ranks than the plan, builders and modules do not match, or this host
            lacks the devices of the plan's transport.
        JobError: there is no job, another rank has another plan, or cannot use its device; the message names it.
    """

    def __init__(
        self, plan: Plan, builders: Mapping[str, Builder], *, timeout_s: float = 60.0, is_debug: bool = False
    ) -> None:
        self._hosts = check_launch(plan, list(builders))
        self.plan, self.rank, self.device = plan, dist.get_rank(), use_device(plan, dist.get_rank())
        self.recorder = Recorder(clock_of(self.device))
        self._meters = {name: ContextMeter(self.recorder) for name in plan.modules}
        self._meshes = make_meshes(plan.grids, device_type=self.device.type)
        timeout = timedelta(seconds=timeout_s)
        # Only gloo's ranks wait in a sum; NCCL's wait on the GPU, for which the step's watchdog has a limit of its own.
        self._groups = make_groups(plan.grids, timeout=timeout if self.device.type == "cpu" else None)
        self._copies = {name: copies_of(of.copies, device=self.device) for name, of in self._groups.items()}
        self.stages: dict[tuple[str, int], nn.Module] = {}
        for name, grid in plan.grids.items():
            if self.rank in grid:
                mine = grid.coordinates(self.rank).pp
                for stage in range(grid.layout.num_stages):
                    if plan.pipeline_rank(name, stage) == mine:
                        self.stages[name, stage] = self._build(name, stage, builders[name])
        self._channels, self._seen = Channels(plan), SeenShapes()
        _, self._lanes = make_topology(plan)
        self._lane = next(i for i, ranks in enumerate(self._lanes) if self.rank in ranks)
        self._transport = MeteredTransport(self._make_transport(timeout), self.recorder)
        checked = CheckedTransport(self._transport, timeout=timeout) if is_debug else self._transport
        self._is_debug, self._exchange = is_debug, Exchange(self.rank, checked, device=self.device)
        self._executor = Executor(
            self.stages,
            exchange=self._exchange,
            recorder=self.recorder,
            reduce=self._reduce,
            deferring={a.module for lane in step_program(plan).lanes for a in lane if a.kind is Kind.W},
        )
        self._last_program: Program | None = None
        self._rooms: tuple[Program, StepRooms] | None = None
        self._upcoming: Prepared | None = None
        self._copies_are_equal = self._has_failed = False
        self._ambiguous = ambiguous_name(gather_objects(tensor_names(self.stages), group=None))

    def step(self, batch: Batch, *, upcoming: Batch | None = None) -> StepReport:
        """Forward, backward and gradient reduction of one batch, the same on every rank.

        Afterwards every parameter's ``.grad`` is the gradient of (sum of losses / sum of weights) over
        the whole batch; earlier gradients are dropped.

        Args:
            batch: to train on.
            upcoming: the batch of the next step, which is planned and loaded while GPUs still work on this one, in less
                than ``timeout_s``; what is wrong with it is raised by its own step.

        Raises:
            DataError: on every rank, if any rank cannot use the data, or has another batch; names the sample. On one
                rank, if a stage does not return what its contract says.
            JobError: in the first step, if replicas of a stage differ; or an earlier step ended in its middle.
            ValueError: a row operation met a bad id or placeholder. On a GPU, where kernels go on after a fault, it
                comes on every rank at the end of the step, whose gradients are then worth nothing.
        """
        _check_is_batch(batch)
        if upcoming is not None:
            _check_is_batch(upcoming)
        self._check_is_whole()
        if not self._copies_are_equal:
            check_copies(self.stages, self._groups)
            self._copies_are_equal = True
        self._executor.look()
        for parameters in self._executor.parameters.values():
            for parameter in parameters:
                parameter.grad = None
        ready, self._upcoming = self._upcoming, None
        if ready is None or ready.batch is not batch:
            ready = self._prepare(batch, is_training=True)
        work, step = ready.agreed()
        result = self._run(work, step, upcoming=upcoming)
        return self._report(batch, step, result)

    def evaluate(self, batch: Batch) -> EvaluationReport:
        """Forward only, with the stages in eval mode, and then in the modes that they had; raises as ``step`` does."""
        _check_is_batch(batch)
        self._check_is_whole()
        was_training = {part: part.training for stage in self.stages.values() for part in stage.modules()}
        for stage in self.stages.values():
            stage.eval()
        try:
            work, step = self._prepare(batch, is_training=False).agreed()
            result = self._run(work, step, is_training=False)
        finally:
            for part, is_training in was_training.items():
                part.training = is_training
        outputs = pieces_of(result.extras, step, self.plan.grids, rank=self.rank)
        mine = (float(result.loss_sum), float(result.weight), outputs, _kernel_fault())
        losses, weights, rows, faults = zip(*gather_objects(mine, group=None), strict=True)
        if any(faults):
            raise ValueError(name_ranks(faults))
        _check_weight(sum(weights), step)
        return EvaluationReport(sum(losses) / step.divisor, join_pieces(piece for pieces in rows for piece in pieces))

    def timeline(self) -> Timeline:
        """The last step or evaluation as it ran, see hetsched.runtime.measure.trace; every rank calls this.

        Raises:
            JobError: there was none yet.
        """
        if self._last_program is None:
            raise JobError("there is no timeline yet: call step first")
        trace = RankTrace(self._lane, self.recorder.began_ns, self.recorder.records)
        return measured_timeline(self._last_program, gather_objects(trace, group=None))

    def overlap(self) -> tuple[Overlap, ...]:
        """What the last step hid of its communication; every rank calls this. See hetsched.sim.overlap."""
        context = {name: meter.passed() for name, meter in self._meters.items()}
        mine = RankTraffic(self.recorder.began_ns, self._transport.traffic(), context)
        return overlaps(gather_objects(mine, group=None))

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trained parameters that live on this rank."""
        for _, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield parameter

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``<module>.<name>`` and parameter, for all that live on this rank; one that stages share comes once."""
        for (module, _), named in own_parameters(self.stages).items():
            for name, parameter in named.items():
                yield f"{module}.{name}", parameter

    def state_dict(self) -> dict[str, Tensor]:
        """``<module>.<name>`` -> tensor, of this rank's stages; those of all ranks together are the whole model's.

        Raises:
            ValueError: two stages of a module, on whatever ranks, have a name in common.
        """
        self._check_names()
        return self._tensors()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values into the tensors of this rank's stages, under whatever placement they were saved.

        Args:
            tensors: as ``state_dict`` names them; those of other ranks may be among them.

        Raises:
            ValueError: some are missing or have another shape, in which case nothing is copied; or as ``state_dict``.
        """
        self._check_names()
        own = self._tensors()
        if missing := [name for name in own if name not in tensors]:
            raise ValueError(f"{len(missing)} of {len(own)} tensors of this rank are missing, {missing[0]} among them")
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {list(tensors[name].shape)}, and here {list(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _check_names(self) -> None:
        if self._ambiguous is not None:
            raise ValueError(f"{self._ambiguous}; name parts of a stage by their number in the whole model")

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{module}.{name}": tensor
            for (module, _), stage in self.stages.items()
            for name, tensor in stage.state_dict().items()
        }

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale the gradients to a norm of at most ``max_norm`` over the whole model; returns the norm before.

        Args:
            max_norm: above 0; ``math.inf`` only measures.

        Raises:
            ValueError: it is not above 0.
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm is {max_norm}; give a number above 0, or math.inf to measure the norm alone")
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for (module, _), parameters in self._executor.parameters.items():
            layout = self.plan.modules[module].layout
            copies = layout.dp * layout.cp
            for p in parameters:
                if p.grad is not None:
                    squares += p.grad.double().square().sum() / copies
        squares = squares.cpu()
        dist.all_reduce(squares)
        norm = math.sqrt(float(squares))
        if norm > max_norm:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.mul_(max_norm / norm)
        return norm

    def _make_transport(self, timeout: timedelta) -> Transport:
        if self.plan.transport == "gloo":
            return GlooTransport(timeout=timeout)
        # NCCL connects at first use, which holds the host: here, not in the middle of a step.
        for name, groups in self._groups.items():
            nothing = torch.zeros(1, dtype=getattr(torch, self.plan.dtype), device=self.device)
            self._reduce(name, [nn.Parameter(nothing)])
            if groups.context is not None:
                dist.all_reduce(nothing, group=groups.context)
        links = make_links(self._channels.wires, self._lanes, hosts=self._hosts)
        carrier: Carrier
        if self._hosts is None:
            carrier = NcclCarrier(links, device=self.device)
        else:
            carrier = ByHostCarrier(links, hosts=self._hosts, device=self.device)
        return StreamedTransport(carrier, links, device=self.device, timeout=timeout)

    def _build(self, name: str, stage: int, builder: Builder) -> nn.Module:
        layout, dtype = self.plan.modules[name].layout, getattr(torch, self.plan.dtype)
        group = self._groups[name].context
        mesh = ModuleMesh(name, layout.num_stages, self.device, dtype, self._meshes[name], group, self._meters[name])
        built = builder(stage, mesh)
        if not isinstance(built, nn.Module):
            raise TypeError(f"the builder of module {name} returned {type(built).__name__}, not an nn.Module")
        module = built.to(self.device, dtype)
        if self.plan.modules[name].frozen:
            module.requires_grad_(False)
        return module

    def _reduce(self, name: str, parameters: Sequence[nn.Parameter]) -> None:
        try:
            sum_gradients(parameters, self._copies[name])
        except RuntimeError as error:
            if self.device.type != "cpu":
                raise
            # As gloo tells that a rank is gone or late; on GPUs the step's watchdog does.
            raise JobError(f"sum of the gradients of module {name}: {error}") from None

    def _prepare(self, batch: Batch, *, is_training: bool) -> Prepared:
        return prepare(
            self.plan,
            batch,
            self._channels,
            device=self.device,
            rooms_of=self._rooms_of,
            is_training=is_training,
        )

    def _rooms_of(self, program: Program) -> StepRooms:
        """Rows arrive in memory that is lent only where ranks put them there themselves."""
        if self.plan.transport != "peer":
            return StepRooms()
        if self._rooms is None or self._rooms[0] is not program:
            self._rooms = program, step_rooms(program, self._lanes, self._channels)
        return self._rooms[1]

    def _run(
        self, work: RankStep, step: StepPlan, *, is_training: bool = True, upcoming: Batch | None = None
    ) -> StepResult:
        def meanwhile() -> None:
            if upcoming is not None:
                self._upcoming = self._prepare(upcoming, is_training=True)

        self._last_program = step.program
        setup = self._setup(step, work.rooms, is_training=is_training)
        self.recorder.begin_step()
        for meter in self._meters.values():
            meter.begin_step()
        self._has_failed = True
        with self._exchange.step(setup):
            lane = step.program.lanes[self._lane]
            # In the middle a host is farthest ahead of its GPU: at the ends, encoders run as fast as they are launched.
            begun = len(lane) if self.device.type == "cpu" else len(lane) // 2
            result = self._executor.run(lane, work, is_training=is_training, meanwhile={begun: meanwhile})
        self.recorder.end_step()
        self._has_failed = False
        return result

    def _check_is_whole(self) -> None:
        if self._has_failed:
            raise JobError(
                "an earlier step of this engine ended in its middle, and messages of it may still be on their way; "
                "start the ranks again"
            )

    def _setup(self, step: StepPlan, rooms: StepRooms, *, is_training: bool) -> StepSetup:
        digest = step.digest if self._is_debug else 0
        if self.device.type == "cpu":
            return StepSetup(digest=digest)
        is_new = self._seen.add(step, is_training=is_training)
        return StepSetup(is_new, largest_rooms(self.plan, step, self._channels), rooms.by_rank, digest)

    def _report(self, batch: Batch, step: StepPlan, result: StepResult) -> StepReport:
        fault = _kernel_fault()
        every = gather_figures(
            {
                "loss": float(result.loss_sum),
                "weight": float(result.weight),
                "sent_bytes": float(self._exchange.sent_bytes),
                "memory": float(peak_memory_bytes(self.device)),
                "faults": float(fault is not None),
                **recorded_figures(self.recorder),
                **context_figures(self._meters.values()),
            },
            group=None,
        )
        if any(every["faults"]):
            raise ValueError(name_ranks(gather_objects(fault, group=None)))
        _check_weight(sum(every["weight"]), step)
        num_tokens = sum(sample.num_tokens for sample in batch.samples)
        return make_report(every, divisor=step.divisor, num_tokens=num_tokens, is_on_gpu=self.device.type != "cpu")


def _check_weight(counted: float, step: StepPlan) -> None:
    if counted != step.divisor:
        raise DataError(
            f"the stages counted a weight of {counted:g}, the samples were described with "
            f"{step.divisor}; make Sample.weight and the second of what the last stage returns agree"
        )


def _check_is_batch(given: object) -> None:
    if not isinstance(given, Batch):
        raise TypeError(f"a step takes a Batch, not {type(given).__name__}: Batch.of(source, indices) makes one")


def _kernel_fault() -> str | None:
    """What row kernels met on this rank and could not raise; None if all was well."""
    fault = take_fault()
    return None if fault is None else str(fault)
