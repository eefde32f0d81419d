"""On GPUs, every placement gives the gradients of one process on a CPU, to 1e-10 in float64; a dead peer is named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from hetsched.errors import JobError
from hetsched.kernels.put import library
from hetsched.plan import Plan
from hetsched.runtime.transport.nccl import BACKEND
from hetsched.train import launch as launcher
from hetsched.train.launch import launch
from tests.dist.plans import make_plan
from tests.dist.test_curves import PLACEMENTS, plan_of
from tests.dist.test_parity import STAGE0, check_against, expected, layout
from tests.gpu.transport_ranks import die_in_a_step, die_in_a_sum, train_all, train_both_ways, train_digits

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2 or not dist.is_nccl_available(), reason="needs two GPUs and NCCL"
)

FILL = 'encoder = "fill"'
PLANS = {
    "homogeneous dp 2": dict(vision=layout(dp=2), llm=layout(dp=2), schedule=STAGE0),
    "homogeneous pp 2": dict(vision=layout(), llm=layout(pp=2), schedule=STAGE0),
    "colocated": dict(vision=layout(dp=2), llm=layout(pp=2)),
    "colocated, fill": dict(vision=layout(dp=2), llm=layout(pp=2), schedule=FILL),
    "colocated, fill, two in flight": dict(
        vision=layout(dp=2), llm=layout(pp=2), schedule=f"{FILL}\nin_flight = 2", microbatches=6
    ),
    "colocated, fill, zb-h1": dict(
        vision=layout(dp=2), llm=layout(pp=2), schedule=f'{FILL}\npipeline = "zb-h1"', microbatches=6
    ),
    "non-colocated": dict(vision=layout(), llm=layout(1), schedule=STAGE0),
}
MUTANTS = {"homogeneous dp 2": "gradients averaged over dp", "colocated": "a dropped row"}
TIMEOUT_S = 6.0


@pytest.fixture(scope="module", params=["nccl", "peer"])
def transport(request: pytest.FixtureRequest) -> Literal["nccl", "peer"]:
    if request.param == "peer" and (reason := library.missing()) is not None:
        pytest.skip(reason)
    return request.param


def plan_named(name: str, transport: Literal["nccl", "peer"]) -> Plan:
    return replace(make_plan(**PLANS[name], world_size=2), transport=transport)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, transport: Literal["nccl", "peer"]) -> Path:
    """The folder with what two ranks left of every job: one start for all of them."""
    folder = tmp_path_factory.mktemp("trained")
    jobs: dict[str, tuple[Plan, str | None]] = {name: (plan_named(name, transport), None) for name in PLANS}
    jobs |= {f"wrong {name}": (plan_named(name, transport), mutant) for name, mutant in MUTANTS.items()}
    curves = replace(plan_of(PLACEMENTS["colocated"]), transport=transport)
    launch(train_all, jobs, curves, folder, num_ranks=2, backend=BACKEND)
    return folder


def left_by(folder: Path, name: str) -> list:
    return [torch.load(folder / f"{name}-{rank}.pt", map_location="cpu", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", PLANS)
def test_gradients_equal_those_of_one_process(trained: Path, name: str) -> None:
    check_against(left_by(trained, name), expected(plan_named(name, "nccl"), "many"))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_runtime_is_noticed(trained: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        check_against(left_by(trained, f"wrong {name}"), expected(plan_named(name, "nccl"), "many"))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_the_digits_are_trained_and_evaluated_as_by_one_process(trained: Path) -> None:
    parts = dict(vision="first_rank = 0", llm="first_rank = 0", world_size=1, encoder="stage0")
    want = train_digits(plan_of(parts))
    for found in left_by(trained, "digits"):
        assert found == pytest.approx(want, rel=1e-3)


def test_the_first_step_goes_through_the_hosts_and_gives_the_same_gradients(
    tmp_path: Path, transport: Literal["nccl", "peer"]
) -> None:
    launch(train_both_ways, plan_named("colocated", transport), tmp_path, num_ranks=2, backend=BACKEND)
    for (was_staged, *first), *later in left_by(tmp_path, "ways"):
        assert was_staged
        for is_staged, *again in later:
            assert not is_staged
            torch.testing.assert_close(again, first, rtol=1e-12, atol=1e-14)


# In a later step the end of the step or the watchdog notices: CUDA also holds a thread that is far ahead of its GPU.
DEATHS = {
    "in the first step": (0, False, r"nothing arrived from rank 1 on rank 0: "),
    "in a later step": (2, False, r"nothing arrived from rank 1 on rank 0 within 6 s"),
    "while the host is held": (2, True, r"nothing arrived from rank 1 on rank 0 within 6 s; .*; the host stands at "),
}


@pytest.mark.parametrize("when", DEATHS)
def test_a_dead_peer_is_named_with_its_edge_and_microbatch(
    when: str, transport: Literal["nccl", "peer"], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_before, is_held, said = DEATHS[when]
    monkeypatch.setattr(launcher, "GRACE_S", 3 * TIMEOUT_S)
    plan = plan_named("homogeneous pp 2", transport)
    with pytest.raises(JobError) as raised:
        launch(die_in_a_step, plan, TIMEOUT_S, num_before, is_held, num_ranks=2, backend=BACKEND)
    assert "rank 1: ended with exit code 9" in str(raised.value), raised.value
    what = rf"rank 0: JobError: llm stages 0 and 1, backward, microbatch \d: {said}"
    assert re.search(what, str(raised.value)), raised.value


def test_a_peer_that_is_missing_in_a_sum_is_told(
    transport: Literal["nccl", "peer"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "GRACE_S", 3 * TIMEOUT_S)
    with pytest.raises(JobError) as raised:
        launch(die_in_a_sum, plan_named("colocated", transport), TIMEOUT_S, num_ranks=2, backend=BACKEND)
    assert "rank 1: ended with exit code 9" in str(raised.value), raised.value
    said = r"rank 0: JobError: rank 0: the step stood still for 6 s: a rank is missing in a sum of gradients"
    assert re.search(said, str(raised.value)), raised.value


def test_two_ranks_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(JobError, match="ranks 0 and 1 are both on GPU"):
        launch(die_in_a_step, plan_named("colocated", "nccl"), TIMEOUT_S, 0, False, num_ranks=2, backend=BACKEND)
