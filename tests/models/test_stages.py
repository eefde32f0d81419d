"""Stages of the reference model: any split is the same model, any packing the same rows."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetsched.errors import PlanError
from hetsched.models.multimodal import builders
from hetsched.models.vit import sincos_2d
from hetsched.parallel.meter import UNMEASURED
from hetsched.plan import parse_plan
from hetsched.plan.model import stage_layers
from hetsched.runtime.stage import BoundaryRows, StageMeta

PLAN = """
name = "stages"
world_size = 1
microbatches = 1
dtype = "{dtype}"
seed = {seed}
modules = {{ vision.first_rank = 0, llm.first_rank = 0 }}
boundaries = [{{ producer = "vision", consumer = "llm" }}]

[model]
vision = {{ kind = "vision", layers = 3, hidden = 16, heads = 2, ffn = 24, patch = 2, merge = 2 }}
llm = {{ kind = "decoder", layers = 4, hidden = 24, heads = 4, kv_heads = 2, ffn = 32, vocab = 11 }}
"""


def build(
    module: str, num_stages: int, *, dtype: str = "float64", seed: int = 3, device: str = "cpu"
) -> list[nn.Module]:
    builder = builders(parse_plan(PLAN.format(dtype=dtype, seed=seed)))[module]
    mesh = SimpleNamespace(num_stages=num_stages, device=torch.device(device), context_group=None, meter=UNMEASURED)
    return [builder(stage, mesh) for stage in range(num_stages)]


def run(stages: list[nn.Module], meta: StageMeta) -> Any:
    rows = None
    for stage in stages:
        rows = stage(rows, meta)
    return rows


def grad_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def meta_of(lengths: list[int], inputs: dict[str, Tensor], **boundary: BoundaryRows) -> StageMeta:
    cu_seqlens = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths] or [torch.arange(0)])
    return StageMeta(0, cu_seqlens, max(lengths, default=0), positions, inputs, boundary)


def vision_inputs(num_patches: int) -> dict[str, Tensor]:
    return {"patches": torch.rand(num_patches, 4), "row_col": torch.randint(0, 4, (num_patches, 2))}


def llm_inputs(num_tokens: int) -> dict[str, Tensor]:
    labels = torch.randint(0, 11, (num_tokens,))
    labels[::3] = -100
    return {"ids": torch.randint(0, 11, (num_tokens,)), "labels": labels}


def named(stages: list[nn.Module]) -> dict[str, nn.Parameter]:
    parameters = [pair for stage in stages for pair in stage.named_parameters()]
    assert len({name for name, _ in parameters}) == len(parameters), "a name on two stages"
    return dict(parameters)


@pytest.mark.parametrize(("module", "num_stages"), [("vision", 2), ("vision", 3), ("llm", 2), ("llm", 3), ("llm", 4)])
def test_every_split_holds_bitwise_the_same_weights_under_the_same_names(module: str, num_stages: int) -> None:
    whole, split = named(build(module, 1)), named(build(module, num_stages))
    assert whole.keys() == split.keys()
    for name in whole:
        assert torch.equal(whole[name], split[name]), name


def test_weights_depend_on_the_seed_and_on_the_name() -> None:
    one, other = named(build("llm", 1)), named(build("llm", 1, seed=4))
    assert not torch.equal(one["layers.0.attn.q.weight"], other["layers.0.attn.q.weight"])
    assert not torch.equal(one["layers.0.attn.q.weight"], one["layers.1.attn.q.weight"])


def test_float32_weights_are_the_rounded_float64_ones() -> None:
    for name, parameter in named(build("vision", 1, dtype="float32")).items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, named(build("vision", 1))[name].float())


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    build("llm", 2)
    assert torch.equal(before, torch.get_rng_state())


def test_stages_on_the_meta_device_hold_no_memory() -> None:
    stages = build("llm", 2, device="meta")
    assert all(parameter.is_meta for parameter in named(stages).values())


@pytest.mark.parametrize("num_stages", [2, 3])
def test_a_split_encoder_gives_the_rows_and_gradients_of_the_whole(num_stages: int) -> None:
    whole, split = build("vision", 1), build("vision", num_stages)
    meta = meta_of([4, 12, 8], vision_inputs(24))
    rows = [run(stages, meta) for stages in (whole, split)]
    assert rows[0].shape == (6, 24)
    assert torch.equal(*rows)
    for each in rows:
        each.square().sum().backward()
    for name, parameter in named(whole).items():
        assert grad_of(parameter).abs().max() > 0, name
        torch.testing.assert_close(grad_of(named(split)[name]), grad_of(parameter), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_stages", [2, 4])
def test_a_split_llm_gives_the_loss_and_gradients_of_the_whole(num_stages: int) -> None:
    whole, split = build("llm", 1), build("llm", num_stages)
    image = BoundaryRows(torch.randn(2, 24, dtype=torch.float64, requires_grad=True), torch.tensor([1, 7]))
    meta = meta_of([5, 6], llm_inputs(11), vision=image)
    (loss, weight), (split_loss, split_weight) = run(whole, meta), run(split, meta)
    assert loss.item() == split_loss.item()
    assert weight == split_weight == (meta.inputs["labels"] != -100).sum()
    loss.backward()
    entering = grad_of(image.rows).clone()
    split_loss.backward()
    torch.testing.assert_close(grad_of(image.rows), 2 * entering, rtol=1e-12, atol=1e-12)
    for name, parameter in named(whole).items():
        assert grad_of(parameter).abs().max() > 0, name
        torch.testing.assert_close(grad_of(named(split)[name]), grad_of(parameter), rtol=1e-12, atol=1e-12)


def test_packed_images_give_the_rows_of_each_image_alone() -> None:
    (stage,) = build("vision", 1)
    inputs = vision_inputs(24)
    packed = stage(None, meta_of([4, 12, 8], inputs))
    alone, start = [], 0
    for length in (4, 12, 8):
        piece = {name: tensor[start : start + length] for name, tensor in inputs.items()}
        alone.append(stage(None, meta_of([length], piece)))
        start += length
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-12, atol=1e-12)
    without_bounds = stage(None, meta_of([24], inputs))
    assert not torch.allclose(without_bounds, torch.cat(alone), rtol=1e-3), "the oracle cannot fail"


def test_packed_samples_give_the_summed_loss_of_each_sample_alone() -> None:
    (stage,) = build("llm", 1)
    inputs = llm_inputs(11)
    packed, _ = stage(None, meta_of([5, 6], inputs))
    first, _ = stage(None, meta_of([5], {name: tensor[:5] for name, tensor in inputs.items()}))
    second, _ = stage(None, meta_of([6], {name: tensor[5:] for name, tensor in inputs.items()}))
    torch.testing.assert_close(packed, first + second, rtol=1e-12, atol=1e-12)
    without_bounds, _ = stage(None, meta_of([11], inputs))
    assert abs(without_bounds - packed) > 1e-3, "the oracle cannot fail"


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_an_encoder_without_patches_gives_zero_rows_and_zero_gradients(lengths: list[int]) -> None:
    stages = build("vision", 2)
    rows = run(stages, meta_of(lengths, vision_inputs(0)))
    assert rows.shape == (0, 24)
    rows.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in named(stages).values())


def test_an_empty_image_among_others_changes_nothing() -> None:
    (stage,) = build("vision", 1)
    inputs = vision_inputs(12)
    with_empty, without = stage(None, meta_of([4, 0, 8], inputs)), stage(None, meta_of([4, 8], inputs))
    torch.testing.assert_close(with_empty, without, rtol=1e-12, atol=1e-12)


def test_a_sample_without_targets_has_no_loss_and_no_weight() -> None:
    (stage,) = build("llm", 1)
    loss, weight = stage(None, meta_of([3], {"ids": torch.arange(3), "labels": torch.full((3,), -100)}))
    assert loss.item() == 0
    assert weight == 0


def test_a_later_token_does_not_change_what_an_earlier_one_predicts() -> None:
    (stage,) = build("llm", 1)
    ids = torch.randint(0, 11, (6,))
    labels = torch.tensor([1, 2, 3, -100, -100, -100])
    loss, _ = stage(None, meta_of([6], {"ids": ids, "labels": labels}))
    changed = torch.cat((ids[:3], (ids[3:] + 1) % 11))
    same, _ = stage(None, meta_of([6], {"ids": changed, "labels": labels}))
    assert loss.item() == pytest.approx(same.item(), abs=1e-12)


def test_image_rows_replace_the_embedding_of_their_placeholders() -> None:
    (stage,) = build("llm", 1)
    inputs = llm_inputs(6)
    own = stage.get_parameter("embed.tokens.weight").detach()[inputs["ids"][[2, 4]]]
    plain, _ = stage(None, meta_of([6], inputs))
    same, _ = stage(None, meta_of([6], inputs, vision=BoundaryRows(own, torch.tensor([2, 4]))))
    other, _ = stage(None, meta_of([6], inputs, vision=BoundaryRows(own + 1, torch.tensor([2, 4]))))
    assert plain.item() == same.item() != other.item()


def test_an_answer_whose_targets_are_all_correct_is_what_greedy_decoding_writes() -> None:
    (stage,) = build("llm", 1)
    stage.eval()
    ids = torch.tensor([4, 2, 9])
    for _ in range(4):  # greedy decoding: the next id is the one that is reported correct
        labels = torch.full((len(ids),), -100)
        hits = []
        for candidate in range(11):
            labels[-1] = candidate
            hits.append(bool(stage(None, meta_of([len(ids)], {"ids": ids, "labels": labels}))[2][-1]))
        assert sum(hits) == 1
        ids = torch.cat((ids, torch.tensor([hits.index(True)])))
    _, _, correct = stage(None, meta_of([6], {"ids": ids[:-1], "labels": ids[1:]}))
    assert correct[2:].all()


def test_positions_of_patches_tell_row_from_column() -> None:
    position = sincos_2d(torch.tensor([[0, 1], [1, 0], [0, 1]]), hidden=16, dtype=torch.float64)
    assert torch.equal(position[0], position[2])
    assert not torch.allclose(position[0], position[1])


@pytest.mark.parametrize("layers", range(1, 9))
def test_stages_cover_all_layers_in_order_and_differ_by_at_most_one(layers: int) -> None:
    for num_stages in range(1, layers + 1):
        parts = [stage_layers(layers, stage=s, num_stages=num_stages, module="llm") for s in range(num_stages)]
        assert (parts[0].start, parts[-1].stop) == (0, layers)
        assert all(a.stop == b.start for a, b in pairwise(parts))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_stages_than_layers_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match=r"module llm: 5 stages cannot share 4 layers\n.*modules.llm.layout.pp"):
        build("llm", 5)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("vision", {"heads": 3}, "heads=3 does not divide hidden=16"),
        ("vision", {"hidden": 6, "heads": 2}, "hidden=6 is not a multiple of 4"),
        ("vision", {"merge": 0}, "merge=0"),
        ("llm", {"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
        ("llm", {"heads": 8, "kv_heads": 8}, "odd head size, 3"),
        ("llm", {"vocab": -1}, "vocab=-1"),
    ],
)
def test_sizes_that_cannot_be_built_are_plan_errors(section: str, change: dict[str, int], message: str) -> None:
    config = parse_plan(PLAN.format(dtype="float32", seed=0)).model[section]
    sizes = {name: getattr(config, name) for name in config.__dataclass_fields__} | change
    with pytest.raises(PlanError, match=message):
        type(config)(**sizes)
