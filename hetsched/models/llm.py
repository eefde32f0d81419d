"""Decoder LLM on packed sequences: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Shape suffixes: T packed tokens, C hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hetsched import ops
from hetsched.models.attention import Attend, Rotary, SelfAttention, SequencePadding, packed_attention
from hetsched.parallel.meter import UNMEASURED, Meter
from hetsched.parallel.sharded import sharded_attention
from hetsched.plan.model import LLMConfig, stage_layers
from hetsched.runtime.stage import StageMeta

IGNORE = -100
"""Label of a position that is no target; torch's default."""


class DecoderLayer(nn.Module):
    """Pre-norm decoder layer. Source: LLaMA, arXiv 2302.13971, section 2.2; GQA, arXiv 2305.13245."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.attn_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.attn = SelfAttention(hidden, heads=config.heads, kv_heads=config.kv_heads)
        self.ffn_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.gate = nn.Linear(hidden, config.ffn, bias=False)
        self.up = nn.Linear(hidden, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, hidden, bias=False)

    def forward(self, x_TC: Tensor, attend: Attend, rotary: Rotary) -> Tensor:
        x_TC = x_TC + self.attn(self.attn_norm(x_TC), attend, rotary)
        y_TC = self.ffn_norm(x_TC)
        out_TC: Tensor = x_TC + self.down(F.silu(self.gate(y_TC)) * self.up(y_TC))
        return out_TC


class TokenEmbedding(nn.Module):
    """Rows of token ids, with the rows of other modules put over their placeholders."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab, config.hidden)

    def forward(self, meta: StageMeta) -> Tensor:
        ids_T, table_VC = meta.inputs["ids"], self.tokens.weight
        entering = [meta.boundary[name] for name in sorted(meta.boundary)]
        if not entering:
            return ops.gather(table_VC, ids_T)
        slot_T = ops.slots([part.index for part in entering], ids_T.shape[0])
        return ops.merge(table_VC, ids_T, slot_T, [part.rows.to(table_VC.dtype) for part in entering])


class LossHead(nn.Module):
    """Final norm, vocabulary projection and summed cross-entropy."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden, eps=1e-6)
        self.logits = nn.Linear(config.hidden, config.vocab, bias=False)

    def forward(self, x_TC: Tensor, labels_T: Tensor) -> tuple[Tensor, ...]:
        logits_TV = self.logits(self.norm(x_TC))
        if logits_TV.dtype in (torch.float16, torch.bfloat16):
            logits_TV = logits_TV.float()
        loss_sum = F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE, reduction="sum")
        weight = (labels_T != IGNORE).sum()
        if self.training:
            return loss_sum, weight
        return loss_sum, weight, logits_TV.argmax(-1) == labels_T


class LLMStage(nn.Module):
    """One stage of the LLM; see `hetsched.runtime.stage.StageMeta` for the contract.

    The first stage reads ``meta.inputs["ids"]``, int64 ``[T]``, and ``meta.boundary``; the last one reads
    ``meta.inputs["labels"]``, int64 ``[T]``, already shifted, -100 where nothing is predicted. It returns
    ``(loss_sum, weight)`` with weight the number of targets; in eval mode ``(loss_sum, weight, correct)``
    with correct bool ``[T]``: the target is the likeliest token, given the true prefix. An answer is what
    greedy decoding would write if and only if all of its targets are correct.

    Args:
        config: sizes of the whole LLM.
        stage: index of this stage.
        num_stages: stages of the module.
        module: name of the module, for messages.
        context_group: the context-parallel ranks that share its sequences; None without.
        meter: is told of the messages between them.
    """

    def __init__(
        self,
        config: LLMConfig,
        *,
        stage: int,
        num_stages: int,
        module: str = "llm",
        context_group: dist.ProcessGroup | None = None,
        meter: Meter = UNMEASURED,
    ) -> None:
        super().__init__()
        self._meter = meter
        self._num_heads, self._context_group = (config.heads, config.kv_heads), context_group
        layers = stage_layers(config.layers, stage=stage, num_stages=num_stages, module=module)
        self.head_size, self.rotary_base = config.hidden // config.heads, config.rotary_base
        self.embed = TokenEmbedding(config) if stage == 0 else None
        # Keyed by the index in the whole model, so that a parameter has one name in every split.
        self.layers = nn.ModuleDict({str(i): DecoderLayer(config) for i in layers})
        self.head = LossHead(config) if stage == num_stages - 1 else None

    def forward(self, rows: Tensor | None, meta: StageMeta) -> Tensor | tuple[Tensor, ...]:
        if self.embed is not None:
            rows = self.embed(meta)
        assert rows is not None, "a stage after the first is given rows"
        attend = self._attend(meta, rows)
        rotary = Rotary.of(meta.positions, head_size=self.head_size, base=self.rotary_base, dtype=rows.dtype)
        for layer in self.layers.values():
            rows = layer(rows, attend, rotary)
        return rows if self.head is None else self.head(rows, meta.inputs["labels"])

    def _attend(self, meta: StageMeta, rows: Tensor) -> Attend:
        """Causal attention within each sample, made once for all layers."""
        if meta.shard is None:
            padding = SequencePadding.of(meta.cu_seqlens, num_tokens=rows.shape[0], max_seqlen=meta.max_seqlen)
            return partial(packed_attention, padding=padding, causal=True)
        num_heads, num_kv_heads = self._num_heads
        return sharded_attention(
            meta.shard,
            group=self._context_group,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=self.head_size,
            like=rows,
            meter=self._meter,
        )
