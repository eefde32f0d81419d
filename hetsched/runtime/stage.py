"""What a stage is given besides its rows, and the contract a stage fulfils."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BoundaryRows:
    """Rows that another module produced for this stage.

    Args:
        rows: ``[num_rows, hidden]``, in the order of the positions they fill.
        index: int64 ``[num_rows]``, the row of the packed sequence that each fills.
    """

    rows: Tensor
    index: Tensor


@dataclass(frozen=True, slots=True)
class StageMeta:
    """The part of a microbatch that is not rows; the same for every stage of a module replica.

    A stage is a plain ``nn.Module`` with ``forward(rows, meta) -> rows``. ``rows`` is
    ``[num_tokens, hidden]`` from the stage before, or None at a module's first stage, which
    starts from ``meta.inputs``. The last stage of an encoder returns the rows of its items, one item after the
    other; the last stage of the sink module returns ``(loss_sum, weight)``: a scalar, not
    divided by anything, and the number that the sample weights of the microbatch must add up to.

    Args:
        microbatch: index of the microbatch, the first of a window's.
        cu_seqlens: int32 ``[num_seqs + 1]``, starts at 0: boundaries of samples (or items).
        max_seqlen: the longest of them.
        positions: int64 ``[num_tokens]``, position of each row in its own sequence.
        inputs: the loaded tensors, concatenated ``[num_tokens, ...]``; first and last stage only.
        boundary: producer's name -> rows that enter at this stage.
    """

    microbatch: int
    cu_seqlens: Tensor
    max_seqlen: int
    positions: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    boundary: Mapping[str, BoundaryRows] = field(default_factory=dict)
