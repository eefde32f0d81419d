"""An engine over its life: errors in the middle of a step, parameters that change, modes, and states that are saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import Tensor, nn

from hetsched import Batch, BoundaryRows, Engine, StageMeta, parse_plan
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.test_own_stages import HIDDEN, Encoder

pytestmark = pytest.mark.alone

COLOCATED = dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.pp = 2", world_size=2)
ALONE = dict(vision="first_rank = 0", llm="first_rank = 0", world_size=1)
REPLICAS = dict(vision="first_rank = 0\nlayout.dp = 2", llm="first_rank = 0\nlayout.dp = 2", world_size=2)


def batch_of(first: int = 0) -> Batch:
    return Batch.of(RaggedSource(3), range(first, first + 8))


def engine_of(plan: Plan, **options: Any) -> Engine:
    return Engine(plan, builders(plan), **options)


def said_by(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:  # the test looks at which it is
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fails_in_the_middle(plan: Plan) -> tuple[float, str, str, str]:
    engine = engine_of(plan, timeout_s=20.0)
    loss = engine.step(batch_of()).loss

    def broken(*_: object) -> None:
        raise ValueError("a bad id")

    hook = engine.stages["vision", 0].register_forward_pre_hook(broken)
    failed = said_by(lambda: engine.step(batch_of(8)))
    hook.remove()
    return loss, failed, said_by(lambda: engine.step(batch_of())), said_by(lambda: engine.evaluate(batch_of()))


@pytest.mark.parametrize("placement", [COLOCATED, ALONE])
def test_an_engine_whose_step_failed_in_its_middle_is_not_used_again(ranks: Pool, placement: dict[str, Any]) -> None:
    plan = make_plan(**placement)
    for _, failed, *later in ranks.run(fails_in_the_middle, plan, num_ranks=plan.world_size):
        assert failed.startswith("ValueError: a bad id")
        for said in later:
            assert said.startswith("JobError: an earlier step of this engine ended in its middle")


def is_given_no_batches(plan: Plan) -> tuple[str, str, str, float]:
    engine: Any = engine_of(plan)
    said = [
        said_by(lambda: engine.step([3])),
        said_by(lambda: engine.step(batch_of(), upcoming=[3])),
        said_by(lambda: engine.evaluate([3])),
    ]
    return said[0], said[1], said[2], engine.step(batch_of()).loss


def test_what_is_no_batch_is_refused_before_anything_starts(ranks: Pool) -> None:
    for *said, loss in ranks.run(is_given_no_batches, make_plan(**COLOCATED), num_ranks=2):
        assert all(of.startswith("TypeError: a step takes a Batch, not list") for of in said) and loss > 0


def modes_around_an_evaluation(plan: Plan) -> tuple[list[bool], list[bool]]:
    engine = engine_of(plan)
    parts = [part for stage in engine.stages.values() for part in stage.modules()]
    for part in parts[::3]:
        part.training = False
    before = [part.training for part in parts]
    engine.evaluate(batch_of())
    return before, [part.training for part in parts]


def test_an_evaluation_leaves_modes_as_they_were(ranks: Pool) -> None:
    ((before, after),) = ranks.run(modes_around_an_evaluation, make_plan(**ALONE), num_ranks=1)
    assert before == after and len(set(before)) == 2


def measures_the_norm(plan: Plan) -> tuple[str, str, float, bool]:
    engine = engine_of(plan)
    early = said_by(engine.timeline)
    engine.step(batch_of())
    before = [p.grad.clone() for p in engine.parameters() if p.grad is not None]
    said, norm = said_by(lambda: engine.clip_grad_norm(0.0)), engine.clip_grad_norm(math.inf)
    return early, said, norm, all(map(torch.equal, before, [p.grad for p in engine.parameters()]))


def test_a_norm_is_clipped_to_more_than_nothing_and_a_timeline_is_one_of_a_step(ranks: Pool) -> None:
    ((early, said, norm, is_same),) = ranks.run(measures_the_norm, make_plan(**ALONE), num_ranks=1)
    assert early == "JobError: there is no timeline yet: call step first"
    assert said.startswith("ValueError: max_norm is 0.0; give a number above 0") and norm > 0 and is_same


def saves(plan: Plan) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in engine_of(plan).state_dict().items()}


def loads(plan: Plan, saved: dict[str, Tensor]) -> tuple[str, str, dict[str, Tensor], float]:
    """With one tensor too few, with one of another shape, and all of them."""
    engine = engine_of(plan)
    name, *_ = engine.state_dict()
    too_few = said_by(lambda: engine.load_state_dict({n: x for n, x in saved.items() if n != name}))
    odd = said_by(lambda: engine.load_state_dict(saved | {name: saved[name][:1]}))
    engine.load_state_dict(saved)
    found = {n: x.clone() for n, x in engine.state_dict().items()}
    return too_few, odd, found, engine.evaluate(batch_of()).loss


def test_a_state_is_loaded_under_another_placement(ranks: Pool) -> None:
    other = [{n: x + 0.01 for n, x in of.items()} for of in ranks.run(saves, make_plan(**COLOCATED), num_ranks=2)]
    whole = other[0] | other[1]
    ((*_, alone, wanted),) = ranks.run(loads, make_plan(**ALONE), whole, num_ranks=1)
    assert alone.keys() == whole.keys() and all(torch.equal(alone[n], whole[n]) for n in whole)
    for too_few, odd, found, loss in ranks.run(loads, make_plan(**COLOCATED), whole, num_ranks=2):
        assert too_few.startswith("ValueError: 1 of ") and odd.startswith("ValueError: ") and "has shape" in odd
        assert all(torch.equal(x, whole[n]) for n, x in found.items())
        assert loss == pytest.approx(wanted, rel=1e-12)


def saves_by_torch(plan: Plan, folder: Path) -> float:
    engine = engine_of(plan)
    for tensor in engine.state_dict().values():
        tensor.add_(0.01)
    checkpoint.save({"model": engine.state_dict()}, checkpoint_id=folder)
    return engine.evaluate(batch_of()).loss


def loads_by_torch(plan: Plan, folder: Path) -> float:
    engine = engine_of(plan)
    checkpoint.load({"model": engine.state_dict()}, checkpoint_id=folder)
    return engine.evaluate(batch_of()).loss


def test_a_checkpoint_of_torch_is_loaded_under_another_placement(ranks: Pool, tmp_path: Path) -> None:
    saved = ranks.run(saves_by_torch, make_plan(**COLOCATED), tmp_path, num_ranks=2)
    (alone,) = ranks.run(loads_by_torch, make_plan(**ALONE), tmp_path, num_ranks=1)
    replicas = ranks.run(loads_by_torch, make_plan(**REPLICAS), tmp_path, num_ranks=2)
    assert [alone, *replicas, *saved] == pytest.approx([saved[0]] * 5, rel=1e-12)


class Sink(nn.Module):
    """Embedding first; last a loss whose weight is the embedding's, where both stages are given it.

    Args:
        stage: of two.
        table: shared.
    """

    def __init__(self, stage: int, table: nn.Embedding) -> None:
        super().__init__()
        torch.manual_seed(stage)
        self.stage, self.table = stage, table
        self.linear = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor | tuple[Tensor, Any]:
        if self.stage == 0:
            rows = self.table(meta.inputs["ids"])
            for entering in meta.boundary.values():
                rows = rows.index_copy(0, entering.index, entering.rows)
        assert rows is not None
        rows = self.linear(rows).tanh()
        if self.stage == 0:
            return rows
        is_target = meta.inputs["labels"] >= 0
        logits = rows[is_target] @ self.table.weight.T
        return logits.square().sum(), is_target.sum()


def tied(dp: int) -> Engine:
    """Two stages of each rank share their embedding."""
    torch.manual_seed(5)
    table = nn.Embedding(50, HIDDEN, dtype=torch.float64)
    plan = parse_plan(f"""
world_size = {dp}
microbatches = 4
dtype = "float64"
name = "tied"
schedule.pipeline = "interleaved"
boundaries = [{{ producer = "vision", consumer = "llm" }}]
modules.vision = {{ hidden = {HIDDEN}, first_rank = 0, layout.dp = {dp} }}
modules.llm = {{ hidden = {HIDDEN}, first_rank = 0, layout = {{ dp = {dp}, vpp = 2 }} }}
""")
    return Engine(plan, {"vision": lambda *_: Encoder(), "llm": lambda stage, mesh: Sink(stage, table)})


def trains_what_is_tied(dp: int) -> tuple[dict[str, Tensor], float, str]:
    engine = tied(dp)
    engine.step(batch_of())
    named = list(engine.named_parameters())
    assert len({id(p) for _, p in named}) == len(named)
    gradients = {f"{place} {name}": p.grad for place, (name, p) in enumerate(named) if p.grad is not None}
    return gradients, engine.clip_grad_norm(math.inf), said_by(engine.state_dict)


def test_what_stages_of_a_rank_share_is_summed_and_counted_once(ranks: Pool) -> None:
    ((wanted, norm, said),) = ranks.run(trains_what_is_tied, 1, num_ranks=1)
    assert said.startswith("ValueError: llm.table.weight is in stages 0 and 1; name parts of a stage by")
    assert norm == pytest.approx(math.sqrt(sum(float(x.square().sum()) for x in wanted.values())))
    for found, found_norm, _ in ranks.run(trains_what_is_tied, 2, num_ranks=2):
        assert found.keys() == wanted.keys() and found_norm == pytest.approx(norm, rel=1e-12)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-12, atol=1e-14)


def trains_other_parameters(plan: Plan) -> tuple[list[Tensor], list[Tensor], bool, float, float]:
    """One step, and one more with new tensors in place of all parameters, of which the encoder's are frozen."""
    engine = engine_of(plan)
    engine.step(batch_of())
    encoder, llm = engine.stages["vision", 0], engine.stages["llm", 0]
    first = [p.grad.clone() for p in llm.parameters() if p.grad is not None]
    for stage in (encoder, llm):
        stage.load_state_dict({name: x.clone() for name, x in stage.state_dict().items()}, assign=True)
    engine.step(batch_of())
    encoder.requires_grad_(False)
    engine.step(batch_of())
    again = [p.grad.clone() for p in llm.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(x.square().sum()) for x in again))
    return first, again, all(p.grad is None for p in encoder.parameters()), norm, engine.clip_grad_norm(math.inf)


def test_parameters_are_those_that_stages_have_when_a_step_begins(ranks: Pool) -> None:
    for first, again, has_none, wanted, norm in ranks.run(trains_other_parameters, make_plan(**REPLICAS), num_ranks=2):
        assert has_none and norm == pytest.approx(wanted, rel=1e-12)
        torch.testing.assert_close(again, first, rtol=1e-12, atol=1e-14)


def with_unlike_copies(plan: Plan, how: str) -> str:
    engine = engine_of(plan)
    if dist.get_rank() == 1:
        part = engine.stages["vision", 0].embed
        assert isinstance(part, nn.Module)
        if how == "frozen":
            part.requires_grad_(False)
        else:
            part.more = nn.Linear(2, 2)
    return said_by(lambda: engine.step(batch_of()))


FIRST = {
    "frozen": r"embed.pixels.weight [16, 16] (frozen) in place of embed.pixels.weight [16, 16]",
    "another": r"embed.more.weight [2, 2] in place of layers.0.attn_norm.weight [16]",
}


@pytest.mark.parametrize("how", FIRST)
def test_copies_with_other_parameters_are_told_on_every_rank(ranks: Pool, how: str) -> None:
    for said in ranks.run(with_unlike_copies, make_plan(**COLOCATED), how, num_ranks=2):
        stage = "stage 0 of module vision has other parameters on rank 1 than on rank 0"
        assert said.startswith(f"JobError: {stage}, the first of them {FIRST[how]}; build copies"), said


class Projector(Sink):
    """Trains what it makes of entering rows, and nothing else: the adapter of a frozen LLM."""

    def __init__(self, stage: int, table: nn.Embedding) -> None:
        super().__init__(stage, table)
        self.requires_grad_(False)
        if stage == 0:
            self.project = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor | tuple[Tensor, Any]:
        if self.stage == 0:
            projected = {name: self._projected(of) for name, of in meta.boundary.items()}
            meta = replace(meta, boundary=projected)
        return super().forward(rows, meta)

    def _projected(self, entering: BoundaryRows) -> BoundaryRows:
        # As with a batch of texts, whose graph then has nothing of it.
        return replace(entering, rows=self.project(entering.rows)) if len(entering.rows) else entering


def test_what_is_trained_for_entering_rows_alone_is_not_missed_where_none_enter(ranks: Pool) -> None:
    ((_, gradients),) = ranks.run(trains_without_targets, Projector, "few", num_ranks=1)
    assert [list(gradient.shape) for gradient in gradients] == [[HIDDEN, HIDDEN], [HIDDEN]]
    assert all(bool(gradient.any()) for gradient in gradients)


class Nothing(Sink):
    """Has no targets in every other microbatch, and then a loss of nothing."""

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor | tuple[Tensor, Any]:
        output = super().forward(rows, meta)
        if isinstance(output, tuple) and not int(output[1]):
            return torch.zeros((), dtype=torch.float64), 0
        return output


class Untargeted(RaggedSource):
    """The first samples have no targets."""

    def load_sample(self, index: int) -> Any:
        inputs = dict(super().load_sample(index))
        return inputs | {"labels": torch.full_like(inputs["labels"], -100)} if index < 4 else inputs

    def describe(self, index: int) -> Any:
        sample = super().describe(index)
        return type(sample)(index, sample.num_tokens, 0, sample.placeholders) if index < 4 else sample


def trains_without_targets(kind: type[Sink], items: str = "many") -> tuple[float, list[Tensor]]:
    plan = parse_plan(f"""
world_size = 1
microbatches = 4
dtype = "float64"
name = "targets"
schedule.pipeline = "interleaved"
boundaries = [{{ producer = "vision", consumer = "llm" }}]
modules.vision = {{ hidden = {HIDDEN}, first_rank = 0, frozen = {str(items == "few").lower()} }}
modules.llm = {{ hidden = {HIDDEN}, first_rank = 0, layout = {{ vpp = 2 }} }}
""")
    torch.manual_seed(5)
    tables = [nn.Embedding(50, HIDDEN, dtype=torch.float64) for _ in range(2)]
    engine = Engine(plan, {"vision": lambda *_: Encoder(), "llm": lambda stage, mesh: kind(stage, tables[stage])})
    report = engine.step(Batch.of(Untargeted(3, items=items), range(8)))
    return report.loss, [p.grad.clone() for p in engine.parameters() if p.grad is not None]


def test_a_loss_of_nothing_has_no_gradient(ranks: Pool) -> None:
    ((want_loss, wanted),) = ranks.run(trains_without_targets, Sink, num_ranks=1)
    ((loss, found),) = ranks.run(trains_without_targets, Nothing, num_ranks=1)
    assert loss == want_loss
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def evaluates_with_another_weight(plan: Plan) -> str:
    engine = engine_of(plan)
    batch = batch_of()
    heavy = type(batch.samples[0])(0, batch.samples[0].num_tokens, 1000, batch.samples[0].placeholders)
    return said_by(lambda: engine.evaluate(Batch(batch.source, (heavy, *batch.samples[1:]))))


def test_an_evaluation_compares_weights_too(ranks: Pool) -> None:
    (said,) = ranks.run(evaluates_with_another_weight, make_plan(**ALONE), num_ranks=1)
    assert said.startswith("DataError: the stages counted a weight of ")


def is_late_for_a_sum(plan: Plan) -> tuple[str, float]:
    engine = engine_of(plan, timeout_s=2.0)
    engine.step(batch_of())
    reduce = engine._executor._reduce
    if dist.get_rank() == 1:
        engine._executor._reduce = lambda *of: (time.sleep(6.0), reduce(*of))[1]
    began = time.monotonic()
    return said_by(lambda: engine.step(batch_of())), time.monotonic() - began


def test_a_rank_that_is_late_for_a_sum_of_gradients_is_told_within_the_timeout(ranks: Pool) -> None:
    (said, took), _ = ranks.run(is_late_for_a_sum, make_plan(**REPLICAS), num_ranks=2)
    assert said.startswith("JobError: sum of the gradients of module ") and took < 5.0
