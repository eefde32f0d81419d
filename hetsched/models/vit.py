"""Vision encoder on packed patches: images of any sizes in one ``[tokens, hidden]`` sequence.

Patches arrive so that the ``merge x merge`` neighbors that become one row of the LLM follow each other
(the order of Qwen2-VL, arXiv 2409.12191, section 2.1): merging is then a reshape, at whatever stage it happens.

Shape suffixes: T patches of all images, P pixels of a patch, C hidden size, Q a quarter of it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetsched.models.attention import Attend, SelfAttention, SequencePadding, packed_attention
from hetsched.plan.model import VisionConfig, stage_layers
from hetsched.runtime.stage import StageMeta


def sincos_2d(row_col_T2: Tensor, *, hidden: int, dtype: torch.dtype) -> Tensor:
    """2-D sine and cosine positions: half of the channels for the row, half for the column.

    They need no table, so there is no largest image. Source: MAE, arXiv 2111.06377, appendix A.

    Args:
        row_col_T2: int64, row and column of each patch in its image, in patches.
        hidden: number of channels, a multiple of 4.
        dtype: of the result; angles are computed in float64.

    Returns:
        ``[T, hidden]``.
    """
    quarter = hidden // 4
    band = torch.arange(quarter, device=row_col_T2.device, dtype=torch.float64)
    angle_T2Q = row_col_T2[:, :, None].double() * 100.0 ** (-band / quarter)
    return torch.cat((angle_T2Q.sin(), angle_T2Q.cos()), dim=-1).flatten(1).to(dtype)


class VisionLayer(nn.Module):
    """Pre-norm transformer layer: attention within an image, then a GELU feed-forward layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden, heads = config.hidden, config.heads
        self.attn_norm = nn.LayerNorm(hidden)
        self.attn = SelfAttention(hidden, heads=heads, kv_heads=heads)
        self.ffn_norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, config.ffn)
        self.down = nn.Linear(config.ffn, hidden)

    def forward(self, x_TC: Tensor, attend: Attend) -> Tensor:
        x_TC = x_TC + self.attn(self.attn_norm(x_TC), attend)
        out_TC: Tensor = x_TC + self.down(F.gelu(self.up(self.ffn_norm(x_TC))))
        return out_TC


class PatchEmbedding(nn.Module):
    """Pixels and place of a patch to its first row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.hidden = config.hidden
        self.pixels = nn.Linear(config.patch * config.patch, config.hidden)

    def forward(self, patches_TP: Tensor, row_col_T2: Tensor) -> Tensor:
        dtype = self.pixels.weight.dtype
        rows_TC: Tensor = self.pixels(patches_TP.to(dtype))
        return rows_TC + sincos_2d(row_col_T2, hidden=self.hidden, dtype=dtype)


class Projector(nn.Module):
    """Merges neighboring patches and takes them to the LLM's hidden size."""

    def __init__(self, config: VisionConfig, *, out: int) -> None:
        super().__init__()
        self.width = config.hidden * config.patches_per_row
        self.norm = nn.LayerNorm(config.hidden)
        self.up = nn.Linear(self.width, self.width)
        self.down = nn.Linear(self.width, out)

    def forward(self, x_TC: Tensor) -> Tensor:
        merged = self.norm(x_TC).reshape(-1, self.width)
        rows: Tensor = self.down(F.gelu(self.up(merged)))
        return rows


class VisionStage(nn.Module):
    """One stage of the vision encoder; see `hetsched.runtime.stage.StageMeta` for the contract.

    The first stage reads ``meta.inputs["patches"]``, ``[T, patch * patch]``, and ``meta.inputs["row_col"]``,
    int64 ``[T, 2]``; ``meta.cu_seqlens`` bounds the images, in patches. The last one returns
    ``[T / merge^2, out]``. Zero images give zero rows.

    Args:
        config: sizes of the whole encoder.
        out: the LLM's hidden size.
        stage: index of this stage.
        num_stages: stages of the module.
        module: name of the module, for messages.
    """

    def __init__(self, config: VisionConfig, *, out: int, stage: int, num_stages: int, module: str = "vision") -> None:
        super().__init__()
        layers = stage_layers(config.layers, stage=stage, num_stages=num_stages, module=module)
        self.embed = PatchEmbedding(config) if stage == 0 else None
        # Keyed by the index in the whole model, so that a parameter has one name in every split.
        self.layers = nn.ModuleDict({str(i): VisionLayer(config) for i in layers})
        self.projector = Projector(config, out=out) if stage == num_stages - 1 else None

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor:
        if self.embed is not None:
            rows = self.embed(meta.inputs["patches"], meta.inputs["row_col"])
        assert rows is not None, "a stage after the first is given rows"
        padding = SequencePadding.of(meta.cu_seqlens, num_tokens=rows.shape[0], max_seqlen=meta.max_seqlen)
        attend = partial(packed_attention, padding=padding, causal=False)
        for layer in self.layers.values():
            rows = layer(rows, attend)
        return rows if self.projector is None else self.projector(rows)
