"""The digits on GPUs: context parallelism in bf16 learns as one GPU does, and the demo has the gradients of gloo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from hetsched.kernels.put import library
from hetsched.plan import Plan, load_plan, parse_plan
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train.launch import launch
from tests.gpu.digits_ranks import NUM_STEPS, save_gradients, save_losses, sharing

NUM_GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(NUM_GPUS < 1 or not dist.is_nccl_available(), reason="needs a GPU and NCCL")

EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"
DEMO = {path.stem: replace(load_plan(path), dtype="float64") for path in sorted(EXAMPLES.glob("*.toml"))}
DEMO_RANKS = 4
Gradients = list[dict[str, torch.Tensor]]
"""By step, and by the parameter's name."""
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


def run_on_gpus(save: Callable[..., None], *args: object, num_ranks: int) -> None:
    """Start ranks that each have a GPU, or share them where they are more."""
    if num_ranks > NUM_GPUS:
        save, args = sharing, (save, *args)
    launch(save, *args, num_ranks=num_ranks, backend=BACKEND)


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Losses of runs on one GPU that differ in rounding alone, ``[runs, steps]``: they add up in another order."""
    folder = tmp_path_factory.mktemp("one")
    plans = [plan_of(f"one {n}", world_size=1, llm="layout.dp = 1", microbatches=n) for n in (1, 2, 4, 8)]
    launch(save_losses, plans, folder, num_ranks=1, backend=BACKEND)
    return torch.tensor([torch.load(folder / f"{plan.name}.pt") for plan in plans], dtype=torch.float64)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the losses of all context-parallel layouts: one start for each number of ranks."""
    folder = tmp_path_factory.mktemp("cut")
    for num_ranks in sorted({ranks for ranks, _ in LAYOUTS.values()}):
        plans = [
            plan_of(name, world_size=num_ranks, llm=f"{layout}, shortest_cut = 16")
            for name, (ranks, layout) in LAYOUTS.items()
            if ranks == num_ranks
        ]
        run_on_gpus(save_losses, plans, folder, num_ranks=num_ranks)
    return folder


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far two loss curves are apart at most, relative to the second."""
    return float(((a - b).abs() / b).max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_context_parallel_losses_stay_within_the_spread_of_one_gpu(name: str, one_gpu: torch.Tensor, cut: Path) -> None:
    found = torch.tensor(torch.load(cut / f"{name}.pt"), dtype=torch.float64)
    first, last = found[:5].mean(), found[-5:].mean()
    assert last / first < 0.8, "it does not learn"
    spread = max(distance(a, b) for a in one_gpu for b in one_gpu)
    off = distance(found, one_gpu.mean(0))
    assert off <= spread, (off, spread)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Gradients]:
    """What the demo's plans gave, by plan, transport and rank: one start for each transport that is asked for."""
    folder = tmp_path_factory.mktemp("gradients")

    @cache
    def start(transport: Literal["gloo", "nccl", "peer"]) -> None:
        plans = [replace(plan, transport=transport) for plan in DEMO.values()]
        if transport == "gloo":
            launch(save_gradients, plans, folder, num_ranks=DEMO_RANKS)
        else:
            run_on_gpus(save_gradients, plans, folder, num_ranks=DEMO_RANKS)

    def of(name: str, transport: Literal["gloo", "nccl", "peer"], rank: int) -> Gradients:
        start(transport)
        return torch.load(folder / f"{name}-{transport}-{rank}.pt")

    return of


@pytest.mark.parametrize("transport", ["nccl", "peer"])
@pytest.mark.parametrize("name", DEMO)
def test_the_demos_plans_have_the_gradients_of_gloo(
    name: str, transport: str, gradients: Callable[[str, str, int], Gradients]
) -> None:
    if transport == "peer" and (reason := library.missing()) is not None:
        pytest.skip(reason)
    for rank in range(DEMO_RANKS):
        want, found = (gradients(name, way, rank) for way in ("gloo", transport))
        assert len(want) == len(found) == NUM_STEPS
        for ours, theirs in zip(found, want, strict=True):
            assert ours.keys() == theirs.keys()
            for parameter, gradient in ours.items():
                error = float((gradient - theirs[parameter]).abs().max() / theirs[parameter].abs().max())
                assert error <= TOLERANCE, (rank, parameter, error)
