"""The digits on GPUs: context parallelism in bf16 learns as one GPU does, and the demo has the gradients of gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from hetsched.kernels.put import library
from hetsched.plan import Plan, load_plan, parse_plan
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch
from tests.gpu.digits_ranks import NUM_STEPS, save_gradients, save_gradients_sharing, save_losses
from tests.gpu.shared_gpus import BACKEND as SHARED_BACKEND

NUM_GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(NUM_GPUS < 2 or not dist.is_nccl_available(), reason="needs two GPUs and NCCL")

EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"
TOLERANCE = 1e-10
PLAN = """
name = "{name}"
world_size = {world_size}
microbatches = {microbatches}
dtype = "bfloat16"
transport = "nccl"
seed = 1
modules.vision = {{ first_rank = 0, layout.dp = {world_size} }}
modules.llm = {{ first_rank = 0, {llm} }}
boundaries = [{{ producer = "vision", consumer = "llm" }}]
data = {{ batch_size = 32 }}
training = {{ steps = 50, learning_rate = 1e-3, warmup_steps = 10, clip_grad_norm = 1.0 }}

[model]
vision = {{ kind = "vision", layers = 1, hidden = 64, heads = 2, ffn = 128, patch = 4, merge = 2 }}

[model.llm]
kind = "decoder"
layers = 2
hidden = 256
heads = 4
kv_heads = 2
ffn = 512
vocab = 25
rotary_base = 100
"""
LAYOUTS = {
    "cp 2": (2, "layout.cp = 2"),
    "cp 4": (4, "layout.cp = 4"),
    "cp 2 x dp 2": (4, "layout = { cp = 2, dp = 2 }"),
    "cp 2 x pp 2": (4, "layout = { cp = 2, pp = 2 }"),
}


def plan_of(name: str, *, world_size: int, llm: str, microbatches: int = 2) -> Plan:
    return parse_plan(PLAN.format(name=name, world_size=world_size, llm=llm, microbatches=microbatches))


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Losses of runs on one GPU that differ in rounding alone, ``[runs, steps]``: they add up in another order."""
    folder = tmp_path_factory.mktemp("one")
    plans = [plan_of(f"one {n}", world_size=1, llm="layout.dp = 1", microbatches=n) for n in (1, 2, 4, 8)]
    launch(save_losses, plans, folder, num_ranks=1, backend=BACKEND)
    return torch.tensor([torch.load(folder / f"{plan.name}.pt") for plan in plans], dtype=torch.float64)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far two loss curves are apart at most, relative to the second."""
    return float(((a - b).abs() / b).max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_context_parallel_losses_stay_within_the_spread_of_one_gpu(
    name: str, one_gpu: torch.Tensor, tmp_path: Path
) -> None:
    world_size, layout = LAYOUTS[name]
    if world_size > NUM_GPUS:
        pytest.skip(f"needs {world_size} GPUs")
    plan = plan_of(name, world_size=world_size, llm=f"{layout}, shortest_cut = 16")
    launch(save_losses, [plan], tmp_path, num_ranks=world_size, backend=BACKEND)
    found = torch.tensor(torch.load(tmp_path / f"{name}.pt"), dtype=torch.float64)
    first, last = found[:5].mean(), found[-5:].mean()
    assert last / first < 0.8, "it does not learn"
    spread = max(distance(a, b) for a in one_gpu for b in one_gpu)
    off = distance(found, one_gpu.mean(0))
    assert off <= spread, (off, spread)


@pytest.mark.parametrize("transport", ["nccl", "peer"])
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_demos_plans_have_the_gradients_of_gloo(
    path: Path, transport: Literal["nccl", "peer"], tmp_path: Path
) -> None:
    if transport == "peer" and (reason := library.missing()) is not None:
        pytest.skip(reason)
    plan = replace(load_plan(path), dtype="float64")
    is_shared = plan.world_size > NUM_GPUS
    if is_shared and (transport == "nccl" or any(module.layout.cp > 1 for module in plan.modules.values())):
        pytest.skip(f"needs {plan.world_size} GPUs: ranks of NCCL, or of context parallelism, share none")
    launch(save_gradients, plan, tmp_path, num_ranks=plan.world_size)
    save, backend = (save_gradients_sharing, SHARED_BACKEND) if is_shared else (save_gradients, BACKEND)
    launch(save, replace(plan, transport=transport), tmp_path, num_ranks=plan.world_size, backend=backend)
    for rank in range(plan.world_size):
        want, found = (torch.load(tmp_path / f"{plan.name}-{way}-{rank}.pt") for way in ("gloo", transport))
        assert len(want) == len(found) == NUM_STEPS
        for ours, theirs in zip(found, want, strict=True):
            assert ours.keys() == theirs.keys()
            for name, gradient in ours.items():
                error = float((gradient - theirs[name]).abs().max() / theirs[name].abs().max())
                assert error <= TOLERANCE, (rank, name, error)
