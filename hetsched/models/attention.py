"""Self-attention over packed sequences, shared by the vision encoder and the LLM.

Shape suffixes: T packed tokens, S sequences, L longest of them, H query heads, K key and value heads,
D head size, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries ``[T, H, D]``, keys and values ``[T, K, D]`` to outputs ``[T, H, D]``: what sees what is the callee's."""


@dataclass(frozen=True, slots=True)
class SequencePadding:
    """Where the rows of a packed sequence lie in a padded batch; one per forward, used by every layer.

    Args:
        slot_T: int64, flat position in ``[S * L]`` of each packed row; None where nothing is padded.
        is_key_S11L: bool, what bidirectional queries may see; None where nothing is padded.
        num_seqs: S.
        max_seqlen: L.
    """

    slot_T: Tensor | None
    is_key_S11L: Tensor | None
    num_seqs: int
    max_seqlen: int

    @classmethod
    def of(cls, cu_seqlens: Tensor, *, num_tokens: int, max_seqlen: int) -> SequencePadding:
        """The padding of the sequences between ``cu_seqlens``; empty sequences are allowed.

        Args:
            cu_seqlens: int32 ``[S + 1]``, starts at 0 and ends at ``num_tokens``.
            num_tokens: T; given as a number so that a GPU is not waited for.
            max_seqlen: L, likewise.
        """
        num_seqs = cu_seqlens.numel() - 1
        if num_tokens == num_seqs * max_seqlen:
            return cls(None, None, num_seqs, max_seqlen)
        start_S, length_S = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        seq = torch.arange(num_seqs, device=cu_seqlens.device)
        first_slot_S = seq * max_seqlen - start_S
        slot_T = torch.repeat_interleave(first_slot_S, length_S, output_size=num_tokens)
        slot_T = slot_T + torch.arange(num_tokens, device=cu_seqlens.device)
        column_L = torch.arange(max_seqlen, device=cu_seqlens.device)
        # An empty sequence sees its own padding: a softmax over nothing is NaN, and so is its gradient.
        is_key_SL = (column_L < length_S[:, None]) | (length_S == 0)[:, None]
        return cls(slot_T, is_key_SL[:, None, None, :], num_seqs, max_seqlen)

    def pad(self, x_THD: Tensor) -> Tensor:
        """Packed rows ``[T, H, D]`` as ``[S, H, L, D]``, zeros in the padding."""
        heads, size = x_THD.shape[1:]
        if self.slot_T is not None:
            x_THD = x_THD.new_zeros(self.num_seqs * self.max_seqlen, heads, size).index_copy(0, self.slot_T, x_THD)
        return x_THD.reshape(self.num_seqs, self.max_seqlen, heads, size).transpose(1, 2)

    def unpad(self, x_SHLD: Tensor) -> Tensor:
        """The inverse of `pad`."""
        rows = x_SHLD.transpose(1, 2).flatten(0, 1)
        return rows if self.slot_T is None else rows.index_select(0, self.slot_T)


def packed_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *, padding: SequencePadding, causal: bool) -> Tensor:
    """Attention in which each packed sequence sees only itself (block-diagonal).

    Sequences are padded to the longest: at the sizes of a microbatch of short samples that costs less
    than one call per sequence or a mask over all pairs of tokens.

    Args:
        q_THD: queries of all sequences, one after the other.
        k_TKD, v_TKD: keys and values; head k serves query heads ``k * H / K`` onwards.
        padding: where the sequences begin and end.
        causal: whether a token sees only itself and what is before it.

    Returns:
        ``[T, H, D]``.
    """
    q_SHLD, k_SKLD, v_SKLD = padding.pad(q_THD), padding.pad(k_TKD), padding.pad(v_TKD)
    # Padding lies behind each sequence, so the causal mask alone hides it from every real query.
    mask = None if causal else padding.is_key_S11L
    is_grouped = q_THD.shape[1] != k_TKD.shape[1]
    out_SHLD = F.scaled_dot_product_attention(
        q_SHLD, k_SKLD, v_SKLD, attn_mask=mask, is_causal=causal, enable_gqa=is_grouped
    )
    return padding.unpad(out_SHLD)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding of 1-D positions, computed once per forward.

    Source: RoFormer, arXiv 2104.09864, section 3.2; halves are paired as in GPT-NeoX.
    """

    cos_T1D: Tensor
    sin_T1D: Tensor

    @classmethod
    def of(cls, positions_T: Tensor, *, head_size: int, base: float, dtype: torch.dtype) -> Rotary:
        """Angles of ``positions_T`` for heads of ``head_size`` channels, kept in ``dtype``."""
        pair = torch.arange(head_size // 2, device=positions_T.device, dtype=torch.float64)
        angle = positions_T[:, None].double() * base ** (-2.0 * pair / head_size)
        angle_T1D = torch.cat((angle, angle), dim=-1)[:, None, :]
        return cls(angle_T1D.cos().to(dtype), angle_T1D.sin().to(dtype))

    def turn(self, x_THD: Tensor) -> Tensor:
        """``x_THD`` with each pair of channels turned by its token's angle."""
        low, high = x_THD.chunk(2, dim=-1)
        return x_THD * self.cos_T1D + torch.cat((-high, low), dim=-1) * self.sin_T1D


class SelfAttention(nn.Module):
    """Query, key, value and output projections around attention.

    Args:
        hidden: C.
        heads: H.
        kv_heads: K, at most H (grouped-query attention; arXiv 2305.13245).
    """

    def __init__(self, hidden: int, *, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_size = hidden // heads
        self.q = nn.Linear(hidden, heads * self.head_size, bias=False)
        self.k = nn.Linear(hidden, kv_heads * self.head_size, bias=False)
        self.v = nn.Linear(hidden, kv_heads * self.head_size, bias=False)
        self.o = nn.Linear(heads * self.head_size, hidden, bias=False)

    def forward(self, x_TC: Tensor, attend: Attend, rotary: Rotary | None = None) -> Tensor:
        q, k, v = (project(x_TC).unflatten(-1, (-1, self.head_size)) for project in (self.q, self.k, self.v))
        if rotary is not None:
            q, k = rotary.turn(q), rotary.turn(k)
        out_TC: Tensor = self.o(attend(q, k, v).flatten(1))
        return out_TC
