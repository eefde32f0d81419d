"""What benchmarks/train.py trains: samples packed into a microbatch, the same for hetsched and for torch's pipeline."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks._torch_pipeline import FirstStage, LaterStage
from benchmarks._vision_language import LAYOUTS, TINY, RandomSource, builders, make_plan, teraflop_of
from hetsched.batch import Batch
from hetsched.parallel.meter import UNMEASURED
from hetsched.runtime.stage import StageMeta
from hetsched.stepplan import plan_step

CPU = torch.device("cpu")
NUM_SAMPLES, MICROBATCHES = 3, 4
PACKED = replace(TINY, num_samples=NUM_SAMPLES)


@pytest.mark.parametrize("placement", LAYOUTS)
def test_every_microbatch_gets_as_many_samples_and_all_of_their_images(placement: str) -> None:
    plan = make_plan(placement, PACKED, gpus=2, microbatches=MICROBATCHES, transport="gloo")
    step = plan_step(plan, Batch.of(RandomSource(PACKED), range(MICROBATCHES * NUM_SAMPLES)).samples)
    for m in range(MICROBATCHES):
        assert step.shares["llm", m][0].share.lengths == (PACKED.num_tokens,) * NUM_SAMPLES
        items = [length for held in step.shares["vision", m] for length in held.share.lengths]
        assert items == [PACKED.num_patches] * PACKED.num_images * NUM_SAMPLES


def test_work_grows_with_the_samples_of_a_microbatch() -> None:
    assert teraflop_of(PACKED, microbatches=2) == pytest.approx(NUM_SAMPLES * teraflop_of(TINY, microbatches=2))


def test_packed_samples_do_not_see_each_other_in_torchs_pipeline() -> None:
    torch.manual_seed(0)
    make, source = builders(PACKED), RandomSource(PACKED)
    packed = FirstStage(make, PACKED, 2, CPU), LaterStage(make, PACKED, 1, 2, CPU)
    alone = FirstStage(make, TINY, 2, CPU), LaterStage(make, TINY, 1, 2, CPU)
    for one, other in zip(alone, packed, strict=True):
        missing = one.load_state_dict({k: v for k, v in other.state_dict().items() if k != "index"}, strict=False)
        assert set(missing.missing_keys) <= {"index"}
    ids = [source.load_sample(index)["ids"] for index in range(NUM_SAMPLES)]
    patches = [
        torch.cat([source.load_item("vision", p.item.key)["patches"] for p in source.describe(index).placeholders])
        for index in range(NUM_SAMPLES)
    ]
    each = [_logits(*alone, ids[index], patches[index]) for index in range(NUM_SAMPLES)]
    together = _logits(*packed, torch.cat(ids), torch.cat(patches))
    torch.testing.assert_close(together, torch.cat(each))
    assert not torch.allclose(each[0], each[1])


def _logits(first: nn.Module, last: nn.Module, ids: Tensor, patches: Tensor) -> Tensor:
    return last(first(ids[None], patches[None]))[0]


FIRST = [[64], [64, 64], [40, 64], [12, 20, 32], [36]]
"""One sequence, several of one length and ragged ones are compiled for; each again once its sizes change."""
LATER = [[64] * 5, [4, 8], [8, 4, 4, 64], [16], [24] * 2]


# Dynamo looks at the gradients of what layers are given, and torch warns of that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_layers_take_ragged_samples_without_compiling_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # How often layers are traced does not depend on the kernels, which take a minute here.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch.manual_seed(0)
    mesh: Any = SimpleNamespace(num_stages=1, device=CPU, context_group=None, meter=UNMEASURED)
    plain, compiled = (builders(TINY, is_compiled=flag) for flag in (False, True))
    for module, inputs_of in (("vision", _images), ("llm", _texts)):
        stages = [make[module](0, mesh) for make in (plain, compiled)]
        stages[1].load_state_dict(stages[0].state_dict())
        for lengths in [*FIRST, *LATER]:
            with torch.compiler.set_stance("fail_on_recompile" if lengths in LATER else "default"):
                mine, theirs = (_gradients(stage, lengths, inputs_of(sum(lengths))) for stage in stages)
            torch.testing.assert_close(theirs, mine)
    torch._dynamo.reset()


def _texts(num_tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(TINY.llm.vocab, (num_tokens,), generator=torch.Generator().manual_seed(num_tokens))
    return {"ids": ids, "labels": ids.roll(-1)}


def _images(num_patches: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(num_patches)
    patches = torch.randn(num_patches, TINY.vision.patch**2, generator=generator)
    return {"patches": patches, "row_col": torch.zeros(num_patches, 2, dtype=torch.int64)}


def _gradients(stage: nn.Module, lengths: list[int], inputs: dict[str, Tensor]) -> list[Tensor]:
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    output = stage(None, StageMeta(0, cu_seqlens, max(lengths), positions, inputs, {}))
    loss = output[0] if isinstance(output, tuple) else output.square().sum()
    return list(torch.autograd.grad(loss, [p for p in stage.parameters() if p.requires_grad]))
