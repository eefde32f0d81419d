"""How long planning a boundary takes on one core: `python benchmarks/routes.py` prints a line of JSON per case.

Routes are timed in the core, and the whole crossing of a microbatch from shares to routes in both directions.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hetsched.batch import Item, Placeholder, Sample
from hetsched.layout.crossing import Crossing, Side, cross
from hetsched.layout.grid import Grid, Layout
from hetsched.layout.held import Held
from hetsched.layout.rank_share import rank_share
from hetsched.layout.routes import backward_route_array, forward_route_array
from hetsched.layout.shares import Share
from hetsched.layout.tokens import Group, TokenLayout, spread_zigzag

IntArray = NDArray[np.int64]
REPEATS = 50


@dataclass(frozen=True)
class Sizes:
    """A boundary between an encoder with dp x tp ranks and an LLM with dp x cp x tp ranks (all tp replicated).

    Args:
        num_items: items, of random lengths that add up to ``num_tokens``, each used once, in random order.
        first_consumer: the LLM's first rank; the encoder's is 0.
    """

    name: str
    num_items: int
    num_tokens: int
    encoder_dp: int
    encoder_tp: int
    llm_dp: int
    llm_cp: int
    llm_tp: int
    first_consumer: int


CASES = (
    Sizes("8 -> 8 ranks", 512, 131_072, 8, 1, 1, 8, 1, 8),
    Sizes("8 -> 8 ranks, colocated", 512, 131_072, 8, 1, 1, 8, 1, 0),
    Sizes("8 x 8 -> 8 x 8 ranks", 512, 131_072, 8, 8, 1, 8, 8, 64),
    Sizes("4096 -> 4096 ranks", 8192, 2_097_152, 4096, 1, 64, 8, 8, 0),
)


def boundary(sizes: Sizes, rng: np.random.Generator) -> tuple[IntArray, IntArray, IntArray]:
    """Use runs, producers and consumers, as arrays."""
    cuts = np.sort(rng.choice(np.arange(1, sizes.num_tokens), sizes.num_items - 1, replace=False))
    starts, lengths = np.r_[0, cuts], np.diff(np.r_[0, cuts, sizes.num_tokens])
    order = rng.permutation(sizes.num_items)
    positions = np.empty_like(starts)
    positions[order] = np.r_[0, np.cumsum(lengths[order])[:-1]]

    producers, next_row = [], [0] * sizes.encoder_dp
    for start, length, replica in zip(starts, lengths, rng.integers(0, sizes.encoder_dp, sizes.num_items), strict=True):
        first = replica * sizes.encoder_tp
        producers += [(first + rank, next_row[replica], start, length) for rank in range(sizes.encoder_tp)]
        next_row[replica] += length

    consumers = []
    piece = sizes.num_tokens // sizes.llm_dp // sizes.llm_cp // 2
    for part in range(sizes.llm_dp * sizes.llm_cp):
        replica, shard = divmod(part, sizes.llm_cp)
        zigzag = (shard, 2 * sizes.llm_cp - 1 - shard)
        for rank in range(sizes.first_consumer + part * sizes.llm_tp, sizes.first_consumer + (part + 1) * sizes.llm_tp):
            for index, which in enumerate(zigzag):
                start = (replica * sizes.llm_cp * 2 + which) * piece
                consumers.append((rank, index * piece, start, piece))
    return np.stack([positions, starts, lengths], axis=1), np.array(producers), np.array(consumers)


def crossing(sizes: Sizes, rng: np.random.Generator, *, is_sequence_parallel: bool) -> Callable[[], Crossing]:
    """What plans the crossing of such a microbatch, one packed sequence a replica, nothing but items in it."""
    cuts = np.sort(rng.choice(np.arange(1, sizes.num_tokens), sizes.num_items - 1, replace=False))
    lengths = np.diff(np.r_[0, cuts, sizes.num_tokens]).tolist()
    items = [Item("vision", key, num_inputs=4 * length, num_rows=length) for key, length in enumerate(lengths)]
    makers = rng.integers(0, sizes.encoder_dp, sizes.num_items)
    produced, consumed = [], []
    for replica in range(sizes.encoder_dp):
        mine = tuple(items[key] for key in np.flatnonzero(makers == replica))
        share = Share(mine, tuple(item.num_inputs for item in mine), sum(item.num_rows for item in mine))
        produced.append(Held(share))
    for used in np.array_split(rng.permutation(sizes.num_items), sizes.llm_dp):
        placeholders, end = [], 0
        for key in used.tolist():
            placeholders.append(Placeholder(items[key], end))
            end += lengths[key]
        share = Share((Sample(0, end, 1, tuple(placeholders)),), (end,), end)
        consumed.append(Held(share, spread_zigzag(end, Group(sizes.llm_cp))))
    tokens = TokenLayout(is_sequence_parallel)
    encoder = Layout(tp=sizes.encoder_tp, dp=sizes.encoder_dp)
    llm = Layout(tp=sizes.llm_tp, cp=sizes.llm_cp, dp=sizes.llm_dp)
    source = Side("vision", Grid(encoder, tuple(range(encoder.num_ranks))), 0, tokens)
    ranks = range(sizes.first_consumer, sizes.first_consumer + llm.num_ranks)
    sink = Side("llm", Grid(llm, tuple(ranks)), 0, tokens)
    return partial(cross, source, produced, sink, consumed, has_backward=True)


def share_of_one_rank(sizes: Sizes, sides: tuple[IntArray, IntArray, IntArray]) -> object:
    """What the first rank of the consumer sends and receives."""
    rank = sizes.first_consumer
    num_rows = int(sides[2][sides[2][:, 0] == rank, 3].sum())
    return rank_share(forward_route_array(*sides), rank, num_rows=num_rows)


def milliseconds(run: Callable[[], object]) -> dict[str, float]:
    """Median and 20th and 80th percentile of the repeats."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    p20, median, p80 = np.percentile(times, (20, 50, 80))
    return {"median_ms": round(median, 3), "p20_ms": round(p20, 3), "p80_ms": round(p80, 3)}


def main() -> None:
    for sizes in CASES:
        sides = boundary(sizes, np.random.default_rng(0))
        routes = {
            "forward": partial(forward_route_array, *sides),
            "backward": partial(backward_route_array, *sides, partial=False),
            "backward, partial": partial(backward_route_array, *sides, partial=True),
        }
        for direction, route in routes.items():
            report(sizes, direction, route, num_segments=len(route()))
        report(sizes, "forward, share of one rank", partial(share_of_one_rank, sizes, sides))
        for name, is_sequence_parallel in (("crossing", False), ("crossing, sequence-parallel", True)):
            plan = crossing(sizes, np.random.default_rng(0), is_sequence_parallel=is_sequence_parallel)
            report(sizes, name, plan, num_segments=len(plan().forward) + len(plan().backward))


def report(sizes: Sizes, what: str, run: Callable[[], object], **facts: int) -> None:
    """Print how long something takes."""
    row = {"case": sizes.name, "what": what, **facts, **milliseconds(run)}
    print(json.dumps(row | {"machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
