"""The same model in torch's own pipeline, encoder and all: the first stage encodes, 1F1B, NCCL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """The encoder and the LLM's first layers: ids ``[1, T]`` and patches ``[1, images * N, P]`` to ``[1, T, C]``."""

    index: Tensor
    row_col: Tensor

    def __init__(self, make: Builders, sizes: Sizes, num_stages: int, device: torch.device) -> None:
        super().__init__()
        self._sizes, source = sizes, RandomSource(sizes)
        self.vision, self.llm = make["vision"](0, _Alone(1, device)), make["llm"](0, _Alone(num_stages, device))
        places = [torch.arange(p.start, p.start + p.item.num_rows) for p in source.describe(0).placeholders]
        self.register_buffer("index", torch.cat(places).to(device))
        row_col = source.load_item("vision", 0)["row_col"].repeat(sizes.num_images, 1)
        self.register_buffer("row_col", row_col.to(device))

    def forward(self, ids: Tensor, patches: Tensor) -> Tensor:
        of = self._sizes
        images = {"patches": patches[0], "row_col": self.row_col}
        rows = self.vision(None, _meta([of.num_patches] * of.num_images, images, ids.device))
        boundary = {"vision": BoundaryRows(rows, self.index)}
        out: Tensor = self.llm(None, _meta([of.num_tokens], {"ids": ids[0]}, ids.device, boundary))
        return out[None]


class LaterStage(nn.Module):
    """Layers of the LLM: rows ``[1, T, C]`` to rows, or at its end to logits ``[1, T, V]``."""

    def __init__(self, make: Builders, stage: int, num_stages: int, device: torch.device) -> None:
        super().__init__()
        self.llm = make["llm"](stage, _Alone(num_stages, device))
        assert isinstance(self.llm, LLMStage)
        head, self.llm.head = self.llm.head, None
        self.head = nn.Identity() if head is None else nn.Sequential(head.norm, head.logits)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.head(self.llm(rows[0], _meta([rows.shape[1]], {}, rows.device)))
        return out[None]


def make_step(
    make: Builders, sizes: Sizes, *, microbatches: int, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Callable[[], None]]:
    """This rank's stage, and a function that does forward and backward of a step: one sample a microbatch."""
    rank, num_stages = dist.get_rank(), dist.get_world_size()
    module: nn.Module = (
        FirstStage(make, sizes, num_stages, device) if rank == 0 else LaterStage(make, rank, num_stages, device)
    )
    stage = PipelineStage(module.to(dtype), rank, num_stages, device)
    schedule = Schedule1F1B(stage, microbatches, loss_fn=_loss)
    source = RandomSource(sizes)
    texts = [source.load_sample(m) for m in range(microbatches)]
    images = [
        [source.load_item("vision", p.item.key) for p in source.describe(m).placeholders] for m in range(microbatches)
    ]
    ids = torch.stack([text["ids"] for text in texts]).to(device)
    labels = torch.stack([text["labels"] for text in texts]).to(device)
    patches = torch.stack([torch.cat([image["patches"] for image in of]) for of in images]).to(device, dtype)

    def step() -> None:
        schedule.step(*((ids, patches) if rank == 0 else ()), target=labels if rank == num_stages - 1 else None)

    return module, step


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[0].float(), labels[0])


def _meta(
    lengths: list[int],
    inputs: Mapping[str, Tensor],
    device: torch.device,
    boundary: Mapping[str, BoundaryRows] | None = None,
) -> StageMeta:
    return StageMeta(
        microbatch=0,
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        max_seqlen=max(lengths),
        positions=torch.as_tensor(text_positions(lengths), device=device),
        inputs=inputs,
        boundary=boundary or {},
    )
