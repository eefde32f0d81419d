"""What a stage is given besides its rows, and the contract a stage fulfils."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from hetsched.layout.tokens import IntArray


@dataclass(frozen=True, slots=True)
class BoundaryRows:
    """Rows that another module produced for this stage.

    Args:
        rows: ``[num_rows, hidden]``, in the order of the positions they fill.
        index: int64 ``[num_rows]``, the row of the packed sequence (of its part that is here) that each fills.
    """

    rows: Tensor
    index: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ContextShard:
    """Which tokens of a replica's packed sequence are where, under context parallelism; integers on the host.

    Args:
        cu_seqlens: boundaries of the samples in the whole packed sequence, from 0.
        token_map: where its tokens lie on the cp ranks, int64 ``[num_runs, 4]``; see hetsched.layout.tokens.
        rank: this cp rank.
    """

    cu_seqlens: tuple[int, ...]
    token_map: IntArray
    rank: int


@dataclass(frozen=True, slots=True)
class StageMeta:
    """The part of a microbatch that is not rows; the same for every stage of a module replica.

    With context parallelism the rows of a packed sequence are spread over ranks: ``num_tokens`` rows are here,
    and ``shard`` says which. All that is per row (positions, inputs, rows of boundaries) is of these rows alone.

    A stage is a plain ``nn.Module`` with ``forward(rows, meta) -> rows``. ``rows`` is
    ``[num_tokens, hidden]`` from the stage before, or None at a module's first stage, which
    starts from ``meta.inputs``. The last stage of an encoder returns the rows of its items, one item after the
    other; the last stage of the sink module returns ``(loss_sum, weight)``: a scalar, not
    divided by anything, and the number that the sample weights of the microbatch must add up to. Both are read when the
    step ends, so neither may be memory that the stage writes again. It may return a third value, ``[num_tokens, ...]``,
    which ``Engine.evaluate`` cuts into samples and gives to its caller.

    Rows between stages are of the plan's dtype, and those of a boundary of the boundary's, if it has one of its own.
    Rows that a stage returns in another one, as under autocast, are cast; losses are not.

    ``rows`` and those of boundaries may lie in memory that is used again once the microbatch's backward (without one,
    its forward) is done. Autograd and what a stage returns are taken care of; what a stage keeps by itself, for a
    statistic or a cache, must be a copy. They must not be changed in place, as others may have the same memory.

    Parameters are compared and their gradients summed over replicas. Buffers are neither: each replica has its own, so
    what a stage gathers in them (a running mean) is of what that replica saw.

    Args:
        microbatch: index of the microbatch, the first of a window's.
        cu_seqlens: int32 ``[num_seqs + 1]``, starts at 0: boundaries of samples (or items) in the whole packed
            sequence.
        max_seqlen: the longest of them.
        positions: int64 ``[num_tokens]``, position of each row in its own sequence.
        inputs: the loaded tensors, concatenated ``[num_tokens, ...]``; empty but at the module's first and last stage.
        boundary: producer's name -> rows that enter at this stage.
        shard: which tokens of the packed sequence are here; None where all are.
    """

    microbatch: int
    cu_seqlens: Tensor
    max_seqlen: int
    positions: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    boundary: Mapping[str, BoundaryRows] = field(default_factory=dict)
    shard: ContextShard | None = None
