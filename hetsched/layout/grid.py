"""A grid: named axes over an ordered list of global ranks. Integers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of parallelism of one module.

    Args:
        tp, cp, dp, pp: degrees of tensor, context, data and pipeline parallelism.
        vpp: virtual stages per pipeline rank.
        ep: expert parallelism, a second view of the same ranks.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1

    @property
    def num_ranks(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def num_stages(self) -> int:
        return self.pp * self.vpp


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a rank stands in a grid."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Grid:
    """``ranks[tp + TP * (cp + CP * (dp + DP * pp))]``: tp fastest, then cp, dp, pp."""

    layout: Layout
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.ranks) == self.layout.num_ranks
        assert len(set(self.ranks)) == len(self.ranks)

    def __contains__(self, rank: object) -> bool:
        return rank in self.ranks

    def rank(self, *, tp: int = 0, cp: int = 0, dp: int = 0, pp: int = 0) -> int:
        """The global rank at these coordinates."""
        d = self.layout
        return self.ranks[tp + d.tp * (cp + d.cp * (dp + d.dp * pp))]

    def coordinates(self, rank: int) -> Coordinates:
        """Where a global rank stands; the rank must be in the grid."""
        d, i = self.layout, self.ranks.index(rank)
        return Coordinates(tp=i % d.tp, cp=i // d.tp % d.cp, dp=i // (d.tp * d.cp) % d.dp, pp=i // (d.tp * d.cp * d.dp))

    def replica(self, dp: int, pp: int) -> tuple[int, ...]:
        """The tp x cp ranks that hold one pipeline rank of one replica, tp fastest."""
        width = self.layout.tp * self.layout.cp
        start = width * (dp + self.layout.dp * pp)
        return self.ranks[start : start + width]

    def pipeline_rank(self, pp: int) -> tuple[int, ...]:
        """All ranks of one pipeline rank, over all replicas: those that hold copies of one stage."""
        width = self.layout.tp * self.layout.cp * self.layout.dp
        return self.ranks[width * pp : width * (pp + 1)]
