"""Who works on what: samples to microbatches and replicas, items to encoder replicas, by cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hetsched.batch import Item, Placeholder, Sample
from hetsched.layout.assign import assign_longest_first

Cost = Callable[[int], int]
"""From the tokens of one sequence to its work."""


@dataclass(frozen=True)
class Share:
    """One replica's part of one microbatch of one module: sequences laid out one after the other.

    Prints as people are told of it.

    Args:
        members: the samples, or the items, in order.
        lengths: tokens of each as the module sees them.
        num_rows: rows that the module's last stage produces for them.
    """

    members: tuple[Sample | Item, ...]
    lengths: tuple[int, ...]
    num_rows: int

    def __str__(self) -> str:
        of_samples = [str(member.index) for member in self.members if isinstance(member, Sample)]
        of_items = [str(member.key) for member in self.members if isinstance(member, Item)]
        return f"samples {', '.join(of_samples)}" if of_samples else f"items {', '.join(of_items)}"

    @property
    def cu_seqlens(self) -> tuple[int, ...]:
        """Boundaries of the sequences, from 0."""
        return tuple(itertools.accumulate(self.lengths, initial=0))

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def placeholders(self, module: str) -> Iterable[tuple[int, Placeholder]]:
        """(row of the packed sequence where it starts, placeholder) of every use of an item of ``module``."""
        for sample, row in zip(self.members, self.cu_seqlens, strict=False):
            assert isinstance(sample, Sample)
            yield from ((row + p.start, p) for p in sample.placeholders if p.item.module == module)


def share_samples(
    samples: Sequence[Sample], *, num_microbatches: int, num_replicas: int, cost: Cost
) -> list[tuple[Share, ...]]:
    """For each microbatch the shares of the replicas: longest samples first, to the lightest share so far."""
    num_bins = num_microbatches * num_replicas
    members: list[list[Sample]] = [[] for _ in range(num_bins)]
    bins = assign_longest_first([cost(sample.num_tokens) for sample in samples], num_bins=num_bins)
    for sample, where in zip(samples, bins, strict=True):
        members[where].append(sample)
    shares = [_sample_share(ms) for ms in members]
    return [tuple(shares[m * num_replicas : (m + 1) * num_replicas]) for m in range(num_microbatches)]


def items_of(consumers: Sequence[tuple[Share, ...]], module: str) -> list[tuple[Item, ...]]:
    """For each microbatch the items of ``module`` that its samples use, each once.

    Args:
        consumers: for each microbatch the shares of the samples.
        module: the encoder.
    """
    return [
        tuple({p.item.key: p.item for share in shares for _, p in share.placeholders(module)}.values())
        for shares in consumers
    ]


def share_items(
    groups: Sequence[Sequence[tuple[Sequence[Item], Sequence[int]]]], *, num_replicas: int, cost: Cost
) -> list[tuple[Share, ...]]:
    """For each microbatch the shares of an encoder's replicas: longest items first, to the least busy replica.

    Args:
        groups: for each microbatch items, with the replicas that may be given them.
        num_replicas: of the encoder; what one already has to do counts over the whole step.
        cost: of an item, from its inputs.
    """
    loads = [0] * num_replicas
    result = []
    for of_microbatch in groups:
        members: list[list[Item]] = [[] for _ in range(num_replicas)]
        for items, allowed in of_microbatch:
            costs = [cost(item.num_inputs) for item in items]
            bins = assign_longest_first(costs, num_bins=len(allowed), loads=[loads[replica] for replica in allowed])
            for item, work, where in zip(items, costs, bins, strict=True):
                members[allowed[where]].append(item)
                loads[allowed[where]] += work
        result.append(tuple(map(_item_share, members)))
    return result


def _sample_share(samples: Sequence[Sample]) -> Share:
    lengths = tuple(sample.num_tokens for sample in samples)
    return Share(tuple(samples), lengths, sum(lengths))


def _item_share(items: Sequence[Item]) -> Share:
    return Share(tuple(items), tuple(item.num_inputs for item in items), sum(item.num_rows for item in items))
