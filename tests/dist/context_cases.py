"""Problems of context-parallel attention: documents, heads, and who keeps which tokens."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hetsched.layout.dispatch import plan_tokens
from hetsched.layout.tokens import Group, IntArray, spread_zigzag
from hetsched.layout.ways import Way, WayBack

MapKind = Literal["planned", "zigzag", "random", "one rank"]
LENGTHS = (0, 1, 127, 128, 129, 300)
LONG = 600


@dataclass(frozen=True)
class ContextCase:
    """Documents on ``cp`` ranks; ``seed`` decides inputs, and cuts of a random map."""

    lengths: tuple[int, ...]
    cp: int
    map_kind: MapKind = "planned"
    heads: tuple[int, int] = (4, 2)
    window: int | None = None
    dtype: torch.dtype = torch.float64
    seed: int = 0
    forced: Way | None = "ring"
    forced_back: WayBack | None = None
    head_dim: int = 8

    @property
    def cu_seqlens(self) -> list[int]:
        return list(itertools.accumulate(self.lengths, initial=0))

    @property
    def token_map(self) -> IntArray:
        """Who keeps what; a random map leaves some ranks of three and more empty."""
        total = sum(self.lengths)
        if self.map_kind == "planned":
            return plan_tokens(self.cu_seqlens, cp=self.cp, quadratic=1, linear=64, shortest_cut=200)
        if self.map_kind == "zigzag":
            return spread_zigzag(total, Group(self.cp))
        generator = np.random.default_rng(self.seed)
        num_pieces = 1 if self.map_kind == "one rank" else 3 * self.cp
        edges = np.unique([0, total, *generator.integers(0, total + 1, num_pieces - 1)])
        owners = generator.integers(0, max(1, self.cp - (self.cp > 2)), len(edges) - 1)
        return map_of(edges, self.cp - 1 - owners)

    def inputs(self) -> list[Tensor]:
        """q, k, v and the output's gradient, of the whole sequence."""
        generator = torch.Generator().manual_seed(self.seed)
        total, (num_heads, num_kv_heads) = sum(self.lengths), self.heads
        shapes = [(total, heads, self.head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)]
        return [torch.randn(shape, generator=generator, dtype=torch.float32).to(self.dtype) for shape in shapes]


def digest_of(case: ContextCase) -> str:
    """Of the inputs' bits, by which processes can tell that they have the same."""
    bits = (x.view(torch.uint8).numpy().tobytes() for x in case.inputs())
    return hashlib.sha256(b"".join(bits)).hexdigest()


def map_of(edges: IntArray, owners: IntArray) -> IntArray:
    """The map in which rank ``owners[i]`` keeps the tokens between edges i and i + 1."""
    runs, rows = [], dict.fromkeys(owners.tolist(), 0)
    for (start, stop), rank in zip(itertools.pairwise(edges.tolist()), owners.tolist(), strict=True):
        runs.append((rank, rows[rank], start, stop - start))
        rows[rank] += stop - start
    return np.array(sorted(runs), np.int64).reshape(-1, 4)


def fuzzed(cp: int, *, num_cases: int, dtype: torch.dtype = torch.float64) -> list[ContextCase]:
    """Random documents, one of them long, on every kind of map, for every grouping of heads, some with windows."""
    generator = np.random.default_rng(cp)
    kinds: tuple[MapKind, ...] = ("planned", "zigzag", "random")
    cases = [ContextCase((300, 129, 0), cp, "one rank", dtype=dtype)]
    for seed in range(num_cases):
        lengths = [int(n) for n in generator.choice(LENGTHS, size=generator.integers(0, 4))]
        lengths.insert(int(generator.integers(0, len(lengths) + 1)), LONG)
        heads = ((4, 4), (4, 1), (8, 1))[seed % 3]
        window = (None, 150, None, 1, 400)[seed % 5]
        cases.append(ContextCase(tuple(lengths), cp, kinds[(seed // 2) % 3], heads, window, dtype, seed))
    return cases


def by_heads(cp: int) -> list[ContextCase]:
    """Documents on every kind of map, with heads for each of ``cp`` ranks."""
    heads = {2: (4, 2), 3: (6, 3), 4: (8, 4), 8: (16, 8)}[cp]
    kinds: tuple[tuple[MapKind, int | None], ...] = (
        ("planned", None), ("zigzag", 150), ("random", None), ("one rank", None),
    )  # fmt: skip
    return [ContextCase((129, 0, 300, 1), cp, kind, heads, window, forced="ulysses") for kind, window in kinds]
