"""The same model in torch's own pipeline, encoder and all: the first stage encodes, 1F1B, NCCL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from benchmarks._vision_language import RandomSource, Sizes
from hetsched.layout.positions import text_positions
from hetsched.models.llm import LLMStage
from hetsched.models.multimodal import StageBuilder
from hetsched.parallel.meter import UNMEASURED, Meter
from hetsched.runtime.stage import BoundaryRows, StageMeta

Builders = Mapping[str, StageBuilder]


@dataclass(frozen=True)
class _Alone:
    """What builders ask of a mesh."""

    num_stages: int
    device: torch.device
    context_group: dist.ProcessGroup | None = None
    meter: Meter = UNMEASURED


class FirstStage(nn.Module):
    """The encoder and the LLM's first layers.

    Of a microbatch's samples, packed: ids ``[1, T]`` and patches ``[1, N, P]`` of all their images to ``[1, T, C]``.
    """

    index: Tensor

    def __init__(self, make: Builders, sizes: Sizes, num_stages: int, device: torch.device) -> None:
        super().__init__()
        source, num_images = RandomSource(sizes), sizes.num_samples * sizes.num_images
        self.vision, self.llm = make["vision"](0, _Alone(1, device)), make["llm"](0, _Alone(num_stages, device))
        places = [
            torch.arange(p.item.num_rows) + sizes.num_tokens * sample + p.start
            for sample in range(sizes.num_samples)
            for p in source.describe(sample).placeholders
        ]
        self.register_buffer("index", torch.cat(places).to(device))
        row_col = source.load_item("vision", 0)["row_col"].repeat(num_images, 1).to(device)
        self._images = _meta([sizes.num_patches] * num_images, device, row_col=row_col)
        self._text = _meta([sizes.num_tokens] * sizes.num_samples, device)

    def forward(self, ids: Tensor, patches: Tensor) -> Tensor:
        images = replace(self._images, inputs={**self._images.inputs, "patches": patches[0]})
        boundary = {"vision": BoundaryRows(self.vision(None, images), self.index)}
        out: Tensor = self.llm(None, replace(self._text, inputs={"ids": ids[0]}, boundary=boundary))
        return out[None]


class LaterStage(nn.Module):
    """Layers of the LLM: rows ``[1, T, C]`` to rows, or at its end to logits ``[1, T, V]``."""

    def __init__(self, make: Builders, sizes: Sizes, stage: int, num_stages: int, device: torch.device) -> None:
        super().__init__()
        self._text = _meta([sizes.num_tokens] * sizes.num_samples, device)
        self.llm = make["llm"](stage, _Alone(num_stages, device))
        assert isinstance(self.llm, LLMStage)
        head, self.llm.head = self.llm.head, None
        self.head = nn.Identity() if head is None else nn.Sequential(head.norm, head.logits)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.head(self.llm(rows[0], self._text))
        return out[None]


def make_step(
    make: Builders, sizes: Sizes, *, microbatches: int, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Callable[[], None]]:
    """This rank's stage, and a function that does forward and backward of a step."""
    rank, num_stages = dist.get_rank(), dist.get_world_size()
    module: nn.Module = (
        FirstStage(make, sizes, num_stages, device) if rank == 0 else LaterStage(make, sizes, rank, num_stages, device)
    )
    stage = PipelineStage(module.to(dtype), rank, num_stages, device)
    schedule = Schedule1F1B(stage, microbatches, loss_fn=_loss)
    source, indices = RandomSource(sizes), range(microbatches * sizes.num_samples)
    texts = [source.load_sample(index) for index in indices]
    images = [source.load_item("vision", p.item.key) for index in indices for p in source.describe(index).placeholders]
    ids, labels = (torch.stack([text[key] for text in texts]).view(microbatches, -1) for key in ("ids", "labels"))
    patches = torch.cat([image["patches"] for image in images])
    patches = patches.view(microbatches, -1, patches.shape[1])
    ids, labels, patches = ids.to(device), labels.to(device), patches.to(device, dtype)

    def step() -> None:
        schedule.step(*((ids, patches) if rank == 0 else ()), target=labels if rank == num_stages - 1 else None)

    return module, step


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[0].float(), labels[0])


def _meta(lengths: list[int], device: torch.device, **inputs: Tensor) -> StageMeta:
    """What is the same for all microbatches; made once, since a copy to the GPU in a step would hold the host there."""
    return StageMeta(
        microbatch=0,
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        max_seqlen=max(lengths),
        positions=torch.as_tensor(text_positions(lengths), device=device),
        inputs=inputs,
        boundary={},
    )
