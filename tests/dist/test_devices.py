"""Plans for GPUs: what a host without them says, which wires a plan has, and how a message that is late is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from hetsched.errors import JobError, PlanError
from hetsched.kernels.put import library
from hetsched.parallel import nccl_calls
from hetsched.plan import parse_plan
from hetsched.runtime import agreement, device
from hetsched.runtime.channels import Channels
from hetsched.runtime.device import Seat, check_devices, what_is_wrong
from hetsched.runtime.exchange import Channel, Message, Transfer, Wire
from hetsched.runtime.transport.gloo import GlooReceive, _Arriving
from hetsched.runtime.transport.links import Link
from hetsched.runtime.transport.pending import Pending, what_is_missing
from hetsched.runtime.transport.streamed import check_queues
from hetsched.train import run
from hetsched.train.run import train_plan
from tests.dist.faulty import start_with
from tests.dist.plans import make_plan, plan_text
from tests.dist.pool import Pool
from tests.dist.test_curves import PLACEMENTS, plan_of
from tests.gpu import shared_gpus

COLOCATED = dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.pp = 2", world_size=2)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)


def test_an_unknown_transport_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        PlanError, match=r"transport = 'mpi' is not known\n  field transport\n  fix: .*'gloo', 'nccl', 'peer'"
    ):
        parse_plan('transport = "mpi"\n' + plan_text(**COLOCATED))


@pytest.mark.usefixtures("one_gpu")
def test_training_on_fewer_gpus_than_ranks_is_refused_before_a_process_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "launch", lambda *_, **__: pytest.fail("a rank was started"))
    plan = replace(plan_of(PLACEMENTS["colocated"]), transport="nccl")
    with pytest.raises(PlanError, match=r"2 ranks on this host and 1 CUDA devices\n.*\n  fix: .*transport = \"gloo\""):
        train_plan(plan, out=tmp_path)


@pytest.mark.usefixtures("one_gpu")
def test_a_host_of_a_larger_job_needs_gpus_for_its_own_ranks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    check_devices(make_plan(**COLOCATED | dict(world_size=2)))
    for transport, functions in (("nccl", nccl_calls), ("peer", library)):
        monkeypatch.setattr(functions, "missing", lambda: None)
        check_devices(replace(make_plan(**COLOCATED), transport=transport))


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(("transport", "functions"), [("nccl", nccl_calls), ("peer", library)])
def test_a_transport_whose_functions_are_missing_is_refused(
    transport: str, functions: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "missing", lambda: "it is not there")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(PlanError, match=rf'transport = "{transport}": it is not there\n.*\n  fix: .*"gloo"'):
        check_devices(replace(make_plan(**COLOCATED), transport=transport))


def test_what_tests_of_shared_gpus_replace_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """They run where there are GPUs only, and would not tell before that it has moved."""
    monkeypatch.setattr(shared_gpus, "prepare_environment", lambda: None)
    with shared_gpus.shared_gpus():
        assert agreement.check_ranks(replace(make_plan(**COLOCATED), transport="peer")) == ["here", "here"]


@pytest.mark.skipif(dist.is_nccl_available(), reason="this torch has NCCL")
def test_an_engine_without_nccl_is_refused_on_every_rank(ranks: Pool) -> None:
    plan = replace(make_plan(**COLOCATED), transport="nccl")
    for said in ranks.run(start_with, [plan] * 2, num_ranks=2):
        assert said.startswith('PlanError: transport = "nccl": this torch is built without NCCL\n  field transport\n')


def test_a_plan_has_a_wire_for_each_way_between_each_pair_of_ranks_that_may_exchange_rows() -> None:
    wires = Channels(make_plan(**COLOCATED)).wires
    # Both ranks encode, and the first stage of the LLM is on rank 0.
    assert wires == (
        Wire(0, 1, 0, "vision->llm, forward"),
        Wire(1, 0, 1, "vision->llm, backward"),
        Wire(2, 0, 1, "llm stages 0 and 1, forward"),
        Wire(3, 1, 0, "llm stages 0 and 1, backward"),
    )


def test_every_wire_of_a_larger_plan_goes_one_way_between_two_ranks_and_once() -> None:
    plan = make_plan(
        vision="first_rank = 0\nlayout.dp = 4", llm="first_rank = 2\nlayout = { dp = 2, pp = 2 }", world_size=6
    )
    wires = Channels(plan).wires
    assert len({(wire.tag, wire.source, wire.destination) for wire in wires}) == len(wires)
    assert all(wire.source != wire.destination for wire in wires)
    # Four encoders and two first stages, less the two that a rank has to itself; two pipelines; both ways.
    assert len(wires) == 2 * (4 * 2 - 2) + 2 * 2


def pending(channel: Channel, m: int, peers: set[int], *, is_receive: bool, is_awaited: bool = True) -> Pending:
    work = SimpleNamespace(is_awaited=is_awaited)
    rows = {peer: Message(torch.empty(0, 1), ()) for peer in peers}
    return Pending(work, rows, Transfer(channel, m), is_receive, number=0)


THERE, BACK = (Channel(tag, 1, torch.float32, f"vision->llm, {way}") for tag, way in enumerate(("there", "back")))


def test_a_step_that_stands_still_is_put_down_to_its_first_receive() -> None:
    posted = [
        pending(THERE, 2, {1}, is_receive=False),
        pending(BACK, 0, {1, 3}, is_receive=True),
        pending(BACK, 1, {1}, is_receive=True),
    ]
    assert what_is_missing(posted, rank=0, timeout_s=5) == (
        "vision->llm, back, microbatch 0: nothing arrived from rank 1 or 3 on rank 0 within 5 s; "
        "raise Engine(timeout_s=...) if rank 1 or 3 is only slow, as in first steps that compile"
    )
    assert what_is_missing(posted[:1], rank=0, timeout_s=5) == (
        "vision->llm, there, microbatch 2: rank 1 did not receive from rank 0 within 5 s; "
        "raise Engine(timeout_s=...) if rank 1 is only slow, as in first steps that compile"
    )
    assert "a sum of gradients" in what_is_missing([], rank=0, timeout_s=5)


def late(said: str) -> GlooReceive:
    """A message of rank 2 that gloo gives up, saying why."""
    work = SimpleNamespace(wait=mock.Mock(side_effect=RuntimeError(said)))
    arriving = [_Arriving(work, torch.empty(0, 1), Message(torch.empty(0, 1), ()), peer=2)]
    return GlooReceive(arriving, Transfer(BACK, 0), timedelta(seconds=5))


@pytest.mark.parametrize(("said", "is_late"), [("Timed out waiting 5000ms", True), ("Connection closed", False)])
def test_only_where_a_peer_may_be_slow_the_message_names_the_timeout(said: str, is_late: bool) -> None:
    with mock.patch.object(dist, "get_rank", return_value=0), pytest.raises(JobError) as raised:
        late(said).wait()
    message = str(raised.value)
    assert f"nothing arrived from rank 2 on rank 0: {said}" in message
    assert ("raise Engine(timeout_s=...) if rank 2 is only slow" in message) == is_late


def test_what_may_have_arrived_is_not_blamed_where_another_message_is_waited_for() -> None:
    """Of rows that are put in their place nobody knows that they came before somebody waits for them."""
    posted = [
        pending(BACK, 0, {1}, is_receive=True, is_awaited=False),
        pending(BACK, 1, {1}, is_receive=True),
        pending(BACK, 2, {1}, is_receive=True),
    ]
    assert "microbatch 1: nothing arrived" in what_is_missing(posted, rank=0, timeout_s=5)
    assert "microbatch 0: nothing arrived" in what_is_missing(posted[:1], rank=0, timeout_s=5)


def test_ranks_that_cannot_work_together_are_named() -> None:
    assert what_is_wrong([Seat("GPU a", "2.28"), Seat("GPU b", "2.28")]) is None
    assert "ranks 0 and 2 are both on GPU a" in str(what_is_wrong([Seat("GPU a"), Seat("GPU b"), Seat("GPU a")]))
    assert what_is_wrong([Seat("GPU a"), Seat(problem="no GPU is left")]) == "rank 1: no GPU is left"
    differing = [Seat("GPU a", "2.28"), Seat("GPU b", "2.29")]
    assert "rank 1 has NCCL 2.29, rank 0 has 2.28" in str(what_is_wrong(differing))
    for hosts, said in (("xx", None), ("xy", "rank 1: it is not there")):
        seats = [Seat("GPU a", host=hosts[0]), Seat("GPU b", host=hosts[1], no_nccl="it is not there")]
        assert what_is_wrong(seats) == said, "NCCL is called between hosts"


def test_more_streams_than_queues_are_refused_with_the_rank_that_has_them() -> None:
    links = [Link((Wire(tag, tag + 1, 0, ""),)) for tag in range(3)]
    assert check_queues(links, num_queues=32) is None
    assert check_queues([], num_queues=8) is None
    assert str(check_queues(links, num_queues=8)).startswith("rank 0 has streams of 3 links and 6 other streams, but")
    # The peer transport's receivers have none.
    assert check_queues(links, num_queues=8, of_senders=links) is None
    to_each = [Link((Wire(tag, 0, tag + 1, ""),)) for tag in range(3)]
    assert check_queues(to_each, num_queues=8, of_senders=to_each) is not None


def test_links_between_hosts_need_queues_at_both_ends() -> None:
    """Two links each way: within a host a rank has streams for those on which it sends, between hosts for all four."""
    plan = replace(make_plan(**COLOCATED), transport="peer")
    assert device._what_queues_lack(plan, ["a", "a"], num_queues=8) is None
    said = device._what_queues_lack(plan, ["a", "b"], num_queues=8)
    assert said is not None and said.startswith("rank 0 has streams of 4 links and 6 other streams, but")
    assert device._what_queues_lack(replace(plan, transport="nccl"), None, num_queues=8) == said
