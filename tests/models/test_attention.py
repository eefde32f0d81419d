"""Packed attention against one float64 call per sequence."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hetsched.models.attention import Rotary, SequencePadding, packed_attention

LENGTHS = [[5], [1, 1, 1], [4, 4], [3, 7, 1], [0, 5], [2, 0, 0, 9], [5, 0], [0], [0, 0], []]


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)


def naive(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], *, causal: bool) -> Tensor:
    """Softmax attention written out, one sequence and one head at a time."""
    group = q.shape[1] // k.shape[1]
    out, start = [], 0
    for length in lengths:
        piece = slice(start, start + length)
        heads = []
        for head in range(q.shape[1]):
            scores = q[piece, head] @ k[piece, head // group].T / q.shape[2] ** 0.5
            if causal:
                scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
            heads.append(scores.softmax(-1) @ v[piece, head // group])
        out.append(torch.stack(heads, dim=1))
        start += length
    return torch.cat(out) if out else q


def packed(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], *, causal: bool) -> Tensor:
    padding = SequencePadding.of(bounds(lengths), num_tokens=sum(lengths), max_seqlen=max(lengths, default=0))
    return packed_attention(q, k, v, padding=padding, causal=causal)


def random_qkv(lengths: list[int], *, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    def draw(count: int) -> Tensor:
        return torch.randn(sum(lengths), count, 6, dtype=torch.float64, requires_grad=True)

    return draw(heads), draw(kv_heads), draw(kv_heads)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_attention_equals_one_naive_call_per_sequence(lengths: list[int], causal: bool) -> None:
    qkv = random_qkv(lengths)
    expected, actual = naive(*qkv, lengths, causal=causal), packed(*qkv, lengths, causal=causal)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(actual, qkv, upstream, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, qkv, upstream, allow_unused=True, materialize_grads=True)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_does_not_see_its_neighbors(causal: bool) -> None:
    lengths = [3, 4, 2]
    q, k, v = (x.detach() for x in random_qkv(lengths))
    before = packed(q, k, v, lengths, causal=causal)
    k[3:7], v[3:7] = 100.0, float("nan")
    after = packed(q, k, v, lengths, causal=causal)
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(before[7:], after[7:])
    assert after[3:7].isnan().any(), "the oracle cannot fail if poison has no effect anywhere"


def test_the_oracle_rejects_attention_that_ignores_sequence_bounds() -> None:
    q, k, v = random_qkv([3, 4])
    by_head = (x.transpose(0, 1) for x in (q, k, v))
    dense = scaled_dot_product_attention(next(by_head), next(by_head), next(by_head), enable_gqa=True).transpose(0, 1)
    assert not torch.allclose(dense, naive(q, k, v, [3, 4], causal=False))


def test_packed_attention_has_the_gradient_of_finite_differences() -> None:
    lengths = [2, 0, 3]
    assert torch.autograd.gradcheck(lambda q, k, v: packed(q, k, v, lengths, causal=True), random_qkv(lengths))


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def score(query_at: int, key_at: int) -> float:
        def at(x: Tensor, position: int) -> Tensor:
            return Rotary.of(torch.tensor([position]), head_size=8, base=10_000, dtype=torch.float64).turn(x)

        return (at(q, query_at) * at(k, key_at)).sum().item()

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-12)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-6)
