"""The device of a rank, as the plan's transport asks for it."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hetsched.errors import JobError, PlanError
from hetsched.graph import make_topology
from hetsched.kernels.put import library
from hetsched.parallel import nccl_calls
from hetsched.parallel.host import this_host
from hetsched.plan import Plan
from hetsched.runtime.channels import Channels
from hetsched.runtime.report import gather_objects, name_ranks
from hetsched.runtime.transport.links import is_within_host, make_links
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.runtime.transport.streamed import check_queues

_CUDA_QUEUES = "8"
"""What CUDA takes where CUDA_DEVICE_MAX_CONNECTIONS is not set."""


def backend_of(plan: Plan) -> str:
    """What a plan's job gives to ``init_process_group``."""
    return "gloo" if plan.transport == "gloo" else BACKEND


def check_devices(plan: Plan) -> None:
    """Refuse a plan whose devices this host does not have; needs no other rank.

    Raises:
        PlanError: fewer GPUs than ranks on this host, no NCCL or no compiled library where the transport calls it, or
            a process group without NCCL.
    """
    if plan.transport == "gloo":
        return
    ranks_here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", plan.world_size)), torch.cuda.device_count()
    if not dist.is_nccl_available():
        problem, fix = "this torch is built without NCCL", "install a torch for CUDA"
    elif gpus < ranks_here:
        problem, fix = f"{ranks_here} ranks on this host and {gpus} CUDA devices", "use more GPUs or hosts"
    elif dist.is_initialized() and "nccl" not in dist.get_backend_config():
        problem, fix = "torch.distributed was initialized without NCCL", f"give init_process_group {BACKEND!r}"
    elif plan.transport == "nccl" and (reason := nccl_calls.missing()) is not None:
        problem, fix = reason, "install a torch that brings NCCL as a library of its own"
    elif plan.transport == "peer" and (reason := library.missing()) is not None:
        problem, fix = reason, 'build hetsched where nvcc is, or write transport = "nccl"'
    else:
        return
    raise PlanError(
        f'transport = "{plan.transport}": {problem}',
        field="transport",
        fix=f'{fix}, or write transport = "gloo"',
        source=plan.source,
    )


@dataclass(frozen=True, slots=True)
class Seat:
    """What a rank sits on.

    Args:
        gpu: the UUID of its GPU.
        nccl: NCCL's version.
        problem: why the rank cannot start, if it cannot.
        host: equal on ranks whose processes can share memory.
        num_queues: of its GPU.
        no_nccl: why it cannot call NCCL's functions, if it cannot.
    """

    gpu: str = ""
    nccl: str = ""
    problem: str | None = None
    host: str = ""
    num_queues: int = 0
    no_nccl: str | None = None


def check_ranks(plan: Plan) -> Sequence[str] | None:
    """Compare what the ranks of a job run on; every rank calls this with an equal plan.

    Returns:
        The host of each rank, where the transport differs within hosts and between them.

    Raises:
        PlanError: as by ``check_devices``, on the ranks that it is about.
        JobError: other ranks cannot start, two have one GPU, or they differ in NCCL.
    """
    if plan.transport == "gloo":
        return None
    try:
        check_devices(plan)
        seat = _seat(plan)
    except PlanError as error:
        gather_objects(Seat(problem=str(error)), group=None)
        raise
    seats = gather_objects(seat, group=None)
    hosts = [of.host for of in seats] if plan.transport == "peer" else None
    problem = what_is_wrong(seats) or _what_queues_lack(plan, hosts, num_queues=min(of.num_queues for of in seats))
    if problem is not None:
        raise JobError(problem)
    return hosts


def what_is_wrong(seats: Sequence[Seat]) -> str | None:
    """Why the ranks, in order, cannot work together; None if they can."""
    problems = [seat.problem for seat in seats]
    if any(problems):
        return name_ranks(problems)
    for rank, seat in enumerate(seats):
        first = next(r for r, other in enumerate(seats) if other.gpu == seat.gpu)
        if first != rank:
            fix = "give each process a LOCAL_RANK of its own, and all of a host the same CUDA_VISIBLE_DEVICES"
            return f"ranks {first} and {rank} are both on {seat.gpu}; {fix}"
        if seat.nccl != seats[0].nccl:
            return f"rank {rank} has NCCL {seat.nccl}, rank 0 has {seats[0].nccl}; install the same torch everywhere"
    if len({seat.host for seat in seats}) > 1:
        # Between hosts every transport takes NCCL; within one only that of its name does.
        return name_ranks([seat.no_nccl for seat in seats]) or None
    return None


def _seat(plan: Plan) -> Seat:
    properties = torch.cuda.get_device_properties(use_device(plan, dist.get_rank()))
    return Seat(
        f"GPU {properties.uuid}",
        ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        host=this_host(),
        num_queues=int(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", _CUDA_QUEUES)),
        no_nccl=nccl_calls.missing(),
    )


def _what_queues_lack(plan: Plan, hosts: Sequence[str] | None, *, num_queues: int) -> str | None:
    _, lanes = make_topology(plan)
    links = make_links(Channels(plan).wires, lanes, hosts=hosts)
    near = [link for link in links if hosts is not None and is_within_host(link.wires[0], hosts)]
    return check_queues(links, num_queues=num_queues, of_senders=near)


def use_device(plan: Plan, rank: int) -> torch.device:
    """This rank's device, made the current one where it is a GPU."""
    if plan.transport == "gloo":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank % torch.cuda.device_count())))
    torch.cuda.set_device(device)
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that was in use so far: of the process on CPU, of torch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
