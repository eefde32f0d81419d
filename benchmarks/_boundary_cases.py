"""What benchmarks/boundary.py moves: layouts of either side, items, and the routes between them.

A layout is written as producer and consumer, `dp2,cp2` on the same GPUs and `dp1/dp1` on GPUs of their own: dp splits
the samples, cp splits each replica's rows in zigzag, tp repeats them, and `sp` behind it splits every sample over tp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hetsched.layout.routes import Segment, backward_route, forward_route
from hetsched.layout.tokens import Group, spread_zigzag

NUM_SAMPLES = 4
Holder = tuple[int, int, int, int]
"""Rank, its local row, the first row that it holds there, how many."""


@dataclass(frozen=True)
class Spec:
    """A boundary to be measured.

    Args:
        layouts: as above.
        lengths: rows of each item.
        is_shuffled: whether items go to random positions, or stay in place.
        is_forward: rows from producers to consumers, or gradients (replicated) back.
    """

    layouts: str
    lengths: tuple[int, ...]
    is_shuffled: bool = True
    is_forward: bool = True

    @property
    def is_colocated(self) -> bool:
        return "," in self.layouts

    @property
    def num_ranks(self) -> int:
        """GPUs that it needs; either side of a disjoint one has as many."""
        sides = [max(rank for rank, *_ in holders_of(side, 0, (1,) * 64)) + 1 for side in self.sides]
        return max(sides) * (1 if self.is_colocated else 2)

    @property
    def sides(self) -> tuple[str, str]:
        producer, consumer = re.split("[,/]", self.layouts)
        return producer, consumer

    def __str__(self) -> str:
        return f"{self.layouts} {'forward' if self.is_forward else 'backward'}"


@dataclass(frozen=True)
class Case:
    """One boundary in one direction.

    Args:
        num_rows: made and used, each once.
        route: who copies what to whom.
        makers, users: who holds which rows.
        used: the row that is used at each position.
    """

    num_rows: int
    route: tuple[Segment, ...]
    makers: tuple[Holder, ...]
    users: tuple[Holder, ...]
    used: Tensor

    def rows_of(self, holders: Sequence[Holder], rank: int) -> Tensor:
        """The rows that a rank holds, in the order of its memory."""
        mine = sorted((row, start, count) for of, row, start, count in holders if of == rank)
        return torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(s, s + n) for _, s, n in mine)])

    def busiest_rows(self) -> int:
        """The most rows that cross into or out of one rank."""
        crossing = [s for s in self.route if s.src_rank != s.dst_rank]
        ranks = {rank for s in crossing for rank in (s.src_rank, s.dst_rank)}
        out = (sum(s.num_rows for s in crossing if s.src_rank == rank) for rank in ranks)
        into = (sum(s.num_rows for s in crossing if s.dst_rank == rank) for rank in ranks)
        return max((*out, *into), default=0)


def holders_of(layout: str, first: int, samples: Sequence[int]) -> list[Holder]:
    """Who holds which rows in a layout such as dp2tp2sp, its ranks counted from ``first``, tp fastest.

    Args:
        layout: degrees.
        first: rank.
        samples: rows of each; dp splits their list evenly.
    """
    sizes = {"dp": 1, "cp": 1, "tp": 1} | {axis: int(n) for axis, n in re.findall(r"(dp|cp|tp)(\d+)", layout)}
    shards = sizes["tp"] if layout.endswith("sp") else 1
    starts = np.concatenate(([0], np.cumsum(samples))).tolist()
    holders = []
    for replica in range(sizes["dp"]):
        mine = range(*(len(samples) * r // sizes["dp"] for r in (replica, replica + 1)))
        for tp in range(sizes["tp"]):
            rank, row = first + replica * sizes["cp"] * sizes["tp"] + tp, 0
            if shards > 1:
                for sample in mine:
                    begin, end = (starts[sample] + samples[sample] * part // shards for part in (tp, tp + 1))
                    holders.append((rank, row, begin, end - begin))
                    row += end - begin
                continue
            begin, end = starts[mine.start], starts[mine.stop]
            for part, row, start, count in spread_zigzag(end - begin, Group(cp=sizes["cp"])).tolist():
                holders.append((rank + part * sizes["tp"], row, begin + start, count))
    return [holder for holder in holders if holder[3]]


def make_case(spec: Spec) -> Case:
    """The route and rows of a boundary."""
    lengths = np.array(spec.lengths)
    starts, num_rows = np.concatenate(([0], np.cumsum(lengths)[:-1])), int(lengths.sum())
    order = np.random.default_rng(0).permutation(len(lengths)) if spec.is_shuffled else np.arange(len(lengths))
    positions = np.concatenate(([0], np.cumsum(lengths[order])[:-1]))
    uses = np.stack([positions, starts[order], lengths[order]], axis=1)
    samples = [num_rows * (i + 1) // NUM_SAMPLES - num_rows * i // NUM_SAMPLES for i in range(NUM_SAMPLES)]
    producers = tuple(holders_of(spec.sides[0], 0, samples))
    consumers = tuple(holders_of(spec.sides[1], 0 if spec.is_colocated else spec.num_ranks // 2, samples))
    used = torch.cat([torch.arange(start, start + count) for _, start, count in uses.tolist()])
    if spec.is_forward:
        return Case(num_rows, forward_route(uses, producers, consumers), producers, consumers, used)
    route = backward_route(uses, producers, consumers, partial=False)
    return Case(num_rows, route, consumers, producers, torch.argsort(used))


def items(num_rows: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Random lengths of so many rows in all."""
    drawn = np.random.default_rng(0).integers(shortest, longest + 1, num_rows // shortest + 1)
    cuts = np.cumsum(drawn)
    cuts = cuts[cuts < num_rows]
    return tuple(np.diff(np.concatenate(([0], cuts, [num_rows]))).tolist())


IMAGES = tuple(np.random.default_rng(0).integers(100, 2001, 40).tolist())
SAMPLES = (8192,) * NUM_SAMPLES
"""256 MiB at a hidden size of 4096 in bf16."""


def _both_ways(layouts: str, lengths: tuple[int, ...], *, is_shuffled: bool = True) -> list[Spec]:
    return [Spec(layouts, lengths, is_shuffled, is_forward) for is_forward in (True, False)]


def _four_gpus() -> list[Spec]:
    """Two and two GPUs, and all four for both: replicated and sequence-parallel tp, then ragged images."""
    apart = [f"{a}/{b}" for a in ("tp1dp2", "tp2dp1") for b in ("tp2dp1", "tp1dp2")]
    together = ["tp1dp4,tp4dp1", "tp1dp4,tp2dp2", "tp4dp1,tp1dp4"]
    layouts = [*apart, *(f"{of}sp" for of in apart if "/tp2" in of), *together]
    layouts += [re.sub(r"(tp[24]dp\d)", r"\1sp", of) for of in together]
    specs = [spec for of in layouts for spec in _both_ways(of, SAMPLES, is_shuffled=False)]
    return [*specs, *(spec for of in ("tp1dp2/tp2dp1", "tp1dp4,tp2dp2") for spec in _both_ways(of, IMAGES))]


def _two_gpus() -> list[Spec]:
    """Messages of 1 and 16 MiB, 256 MiB between several layouts, and ragged images."""
    latency = [Spec("dp1/dp1", (mib * 128,)) for mib in (1, 16)]
    layouts = ("dp1/dp1", "dp2,tp2", "dp2,tp2sp", "dp2,cp2")
    bandwidth = [Spec(of, items(32768, 64, 1024)) for of in layouts]
    back = [Spec("tp2,dp2", SAMPLES, is_shuffled=False, is_forward=False)]
    return [*latency, *bandwidth, *back, *(spec for of in ("dp1/dp1", "dp2,tp2sp") for spec in _both_ways(of, IMAGES))]


SUITES = {"2gpu": _two_gpus(), "4gpu": _four_gpus()}
