"""The device of a rank, as the plan's transport asks for it."""

from __future__ import annotations

import os
import resource

import torch
import torch.distributed as dist

from hetsched.errors import PlanError
from hetsched.plan import Plan
from hetsched.runtime.transport.nccl import BACKEND


def backend_of(plan: Plan) -> str:
    """What a plan's job gives to ``init_process_group``."""
    return BACKEND if plan.transport == "nccl" else "gloo"


def check_devices(plan: Plan) -> None:
    """Refuse a plan whose devices this host does not have; needs no other rank.

    Raises:
        PlanError: fewer GPUs than ranks on this host, no NCCL, or a process group without it.
    """
    if plan.transport != "nccl":
        return
    ranks_here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", plan.world_size)), torch.cuda.device_count()
    if not dist.is_nccl_available():
        problem, fix = "this torch is built without NCCL", "install a torch for CUDA"
    elif gpus < ranks_here:
        problem, fix = f"{ranks_here} ranks on this host and {gpus} CUDA devices", "use more GPUs or hosts"
    elif dist.is_initialized() and "nccl" not in dist.get_backend_config():
        problem, fix = "torch.distributed was initialized without NCCL", f"give init_process_group {BACKEND!r}"
    else:
        return
    raise PlanError(
        f'transport = "nccl": {problem}',
        field="transport",
        fix=f'{fix}, or write transport = "gloo"',
        source=plan.source,
    )


def use_device(plan: Plan, rank: int) -> torch.device:
    """This rank's device, made the current one where it is a GPU."""
    if plan.transport != "nccl":
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
