"""What the training benchmark trains: an image encoder and an LLM with random weights, on samples all alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from hetsched.batch import Item, Placeholder, Sample
from hetsched.estimate import stage_work
from hetsched.models.llm import LLMStage
from hetsched.models.multimodal import HasStages, StageBuilder
from hetsched.models.vit import VisionStage
from hetsched.plan import Plan, parse_plan
from hetsched.plan.model import LLMConfig, VisionConfig

DIFFERENT = 4
"""Samples whose contents differ; loading is not what is measured."""


@dataclass(frozen=True)
class Sizes:
    """A model and its samples.

    Args:
        vision, llm: the models.
        num_tokens: of a sample, its images' rows included.
        num_images: of a sample.
        side: of an image, in patches.
        num_samples: packed into the sequence of a microbatch: more work for the same number of launches.
    """

    vision: VisionConfig
    llm: LLMConfig
    num_tokens: int
    num_images: int
    side: int
    num_samples: int = 1

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return self.side**2

    @property
    def num_rows(self) -> int:
        """That an image becomes."""
        return self.num_patches // self.vision.patches_per_row


FULL = Sizes(
    VisionConfig(layers=24, hidden=1024, heads=16, ffn=4096, patch=14, merge=2),
    LLMConfig(layers=24, hidden=2048, heads=16, kv_heads=16, ffn=5504, vocab=32_000),
    num_tokens=4096,
    num_images=4,
    side=32,
)
"""0.3 and 1.3 billion parameters; a quarter of a sample's tokens are images."""

TINY = Sizes(
    VisionConfig(layers=2, hidden=64, heads=4, ffn=128, patch=4, merge=2),
    LLMConfig(layers=4, hidden=64, heads=4, kv_heads=4, ffn=128, vocab=100),
    num_tokens=64,
    num_images=2,
    side=8,
)
"""To try a benchmark out."""


class RandomSource:
    """Samples of random tokens, each with its own random images spread evenly over it.

    Args:
        sizes: of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._image = cache(self._make_image)
        self._text = cache(self._make_text)

    def describe(self, index: int) -> Sample:
        of = self._sizes
        placeholders = []
        for i in range(of.num_images):
            item = Item("vision", of.num_images * index + i, num_inputs=of.num_patches, num_rows=of.num_rows)
            placeholders.append(Placeholder(item, of.num_tokens * i // of.num_images))
        return Sample(index, of.num_tokens, weight=of.num_tokens, placeholders=tuple(placeholders))

    def load_sample(self, index: int) -> Mapping[str, Tensor]:
        return self._text(index % DIFFERENT)

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]:
        return self._image(key % (DIFFERENT * self._sizes.num_images))

    def _make_text(self, seed: int) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self._sizes.llm.vocab, (self._sizes.num_tokens,), generator=generator)
        return {"ids": ids, "labels": ids.roll(-1)}

    def _make_image(self, seed: int) -> Mapping[str, Tensor]:
        generator, side = torch.Generator().manual_seed(seed), self._sizes.side
        patches = torch.randn(side**2, self._sizes.vision.patch**2, generator=generator)
        row_col = torch.stack([torch.arange(side**2) // side, torch.arange(side**2) % side], dim=1)
        return {"patches": patches, "row_col": row_col}


def builders(sizes: Sizes, *, is_compiled: bool = False) -> dict[str, StageBuilder]:
    """Stages with torch's own initial weights, drawn where they will be: a step's time does not depend on them.

    Args:
        sizes: of the model.
        is_compiled: whether ``torch.compile`` makes the layers' kernels; all layers of a module share them.
    """

    def vision(stage: int, mesh: HasStages) -> nn.Module:
        torch.manual_seed(stage)  # replicas start from the same weights
        with mesh.device:
            return compiled(VisionStage(sizes.vision, out=sizes.llm.hidden, stage=stage, num_stages=mesh.num_stages))

    def llm(stage: int, mesh: HasStages) -> nn.Module:
        torch.manual_seed(stage)
        with mesh.device:
            return compiled(LLMStage(sizes.llm, stage=stage, num_stages=mesh.num_stages))

    def compiled(stage: VisionStage | LLMStage) -> nn.Module:
        for layer in stage.layers.values() if is_compiled else ():
            layer.compile(dynamic=True)
        return stage

    return {"vision": vision, "llm": llm}


LAYOUTS = {
    "homogeneous": ("first_rank = 0", "first_rank = 0\nlayout = {{ pp = {gpus} }}", 'encoder = "stage0"'),
    "colocated": (
        "first_rank = 0\nlayout = {{ dp = {gpus} }}",
        "first_rank = 0\nlayout = {{ pp = {gpus} }}",
        'encoder = "fill"',
    ),
    "non-colocated": ("first_rank = 0", "first_rank = 1\nlayout = {{ pp = {others} }}", 'encoder = "stage0"'),
}
"""The tables of encoder, LLM and schedule. In the homogeneous placement the encoder is on the LLM's first stage."""


def make_plan(placement: str, sizes: Sizes, *, gpus: int, microbatches: int, transport: str) -> Plan:
    """The plan of one placement."""
    vision, llm, schedule = (part.format(gpus=gpus, others=gpus - 1) for part in LAYOUTS[placement])
    return parse_plan(f"""
name = "{placement}"
world_size = {gpus}
microbatches = {microbatches}
dtype = "{"float32" if transport == "gloo" else "bfloat16"}"
transport = "{transport}"
[modules.vision]
{vision}
[modules.llm]
{llm}
[[boundaries]]
producer = "vision"
consumer = "llm"
[schedule]
{schedule}
{_table("vision", sizes.vision)}
{_table("llm", sizes.llm)}
""")


def _table(name: str, config: VisionConfig | LLMConfig) -> str:
    fields = (f"{key} = {value!r}" for key, value in vars(config).items())
    return "\n".join([f"[model.{name}]", *fields])


def teraflop_of(sizes: Sizes, *, microbatches: int) -> float:
    """Of a step, as models are compared: twice the multiplications of layers and vocabulary, and a backward is two
    forwards; nothing for the masked half of attention, nor for what is computed again."""
    plan = make_plan("homogeneous", sizes, gpus=1, microbatches=1, transport="gloo")
    encoded = sizes.num_images * stage_work(plan, "vision", 0)(sizes.num_patches)
    masked = sizes.llm.layers * sizes.llm.hidden * sizes.num_tokens**2
    of_sample = encoded + stage_work(plan, "llm", 0)(sizes.num_tokens) - masked
    return 6 * microbatches * sizes.num_samples * of_sample / 1e12
