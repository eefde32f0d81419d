"""Attention of a stage of one's own under context parallelism, against the same stage with all tokens on one rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import hetsched
from hetsched import Batch, Engine, ModuleMesh, StageMeta, parse_plan
from hetsched.models.attention import SequencePadding, packed_attention
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.test_own_stages import HIDDEN, Encoder

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 3


class OwnModel(nn.Module):
    """Embedding, one layer of attention over the whole sample, and a loss.

    Args:
        mesh: of its builder.
    """

    def __init__(self, mesh: ModuleMesh) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.mesh, self.embed = mesh, nn.Embedding(50, HIDDEN)
        self.q, self.kv = nn.Linear(HIDDEN, HEADS * HEAD_DIM), nn.Linear(HIDDEN, 2 * KV_HEADS * HEAD_DIM)

    def forward(self, rows: None, meta: StageMeta) -> tuple[Tensor, Tensor]:
        x = self.embed(meta.inputs["ids"])
        for entering in meta.boundary.values():
            x = x.index_copy(0, entering.index, entering.rows)
        k, v = self.kv(x).unflatten(1, (2, KV_HEADS, HEAD_DIM)).unbind(1)
        out = self.attend(meta, x)(self.q(x).unflatten(1, (HEADS, HEAD_DIM)), k, v).flatten(1)
        is_target = meta.inputs["labels"] >= 0
        return (x + out)[is_target].square().sum(), is_target.sum()

    def attend(self, meta: StageMeta, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        if meta.shard is None:
            padding = SequencePadding.of(meta.cu_seqlens, num_tokens=len(x), max_seqlen=meta.max_seqlen)
            return partial(packed_attention, padding=padding, causal=True)
        heads = dict(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        group, meter = self.mesh.context_group, self.mesh.meter
        return hetsched.sharded_attention(meta.shard, group=group, meter=meter, like=x, **heads)


def train(cp: int) -> tuple[float, float, dict[str, Tensor]]:
    cut = ", shortest_cut = 4" if cp > 1 else ""
    plan = parse_plan(f"""
name = "own attention"
world_size = {cp}
microbatches = 2
dtype = "float64"
boundaries = [{{ producer = "vision", consumer = "llm" }}]
modules.vision = {{ hidden = {HIDDEN}, first_rank = 0, layout.dp = {cp} }}
modules.llm = {{ hidden = {HIDDEN}, first_rank = 0, layout.cp = {cp}{cut} }}
""")
    engine = Engine(plan, {"vision": lambda *_: Encoder(), "llm": lambda stage, mesh: OwnModel(mesh)})
    report = engine.step(Batch.of(RaggedSource(5), range(6)))
    gradients = {name: p.grad.clone() for name, p in engine.named_parameters() if p.grad is not None}
    return report.loss, report.context_bytes, gradients


def test_own_attention_has_the_gradients_of_one_rank(ranks: Pool) -> None:
    ((loss, none, wanted),) = ranks.run(train, 1, num_ranks=1)
    assert none == 0
    for found_loss, num_bytes, found in ranks.run(train, 3, num_ranks=3):
        assert found_loss == pytest.approx(loss, rel=1e-12) and num_bytes > 0
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-12)


def test_what_is_not_sharded_is_refused() -> None:
    heads = dict(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    with pytest.raises(ValueError, match=r"meta\.shard is None: the module's layout has no cp"):
        hetsched.sharded_attention(None, group=None, like=torch.zeros(1), **heads)
