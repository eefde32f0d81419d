"""What one microbatch asks of attention: the ranges, the head counts, and their work tables on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hetsched.kernels.attention import work
from hetsched.kernels.attention.ranges import KeyRanges, seen_by
from hetsched.kernels.attention.work import TileShape, WorkTable

Side = Literal["queries", "keys"]


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """A :class:`WorkTable` on the device; ``num_items`` and ``is_complete`` stay on the host for launches."""

    tiles: Tensor
    order: Tensor
    workers: Tensor
    num_items: int
    is_complete: bool


class AttentionTask:
    """Made once per microbatch and shared by all layers with the same head counts.

    Tables are made when a kernel first asks for its tile shape.

    Args:
        ranges: the keys that each query sees.
        num_heads: query heads; query head h uses key head ``h * num_kv_heads // num_heads``.
        num_kv_heads: key and value heads, a divisor of ``num_heads``.
        device: where the kernels run.

    Raises:
        ValueError: ``num_kv_heads`` does not divide ``num_heads``.
    """

    def __init__(
        self, ranges: KeyRanges, *, num_heads: int, num_kv_heads: int, device: torch.device | str = "cpu"
    ) -> None:
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
        self.ranges, self.num_heads, self.num_kv_heads = ranges, num_heads, num_kv_heads
        # "cuda" is the current GPU, as everywhere in torch; tensors name it by its index.
        self.device = torch.empty(0, device=device).device
        self.num_workers = _num_multiprocessors(self.device)
        self._tables: dict[tuple[Side, TileShape], DeviceTable] = {}
        self._pad_blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def table(self, side: Side, shape: TileShape) -> DeviceTable:
        """The table of kernels that own ``side``, for their tile shape."""
        key = (side, shape)
        if key not in self._tables:
            make = work.query_major if side == "queries" else work.key_major
            heads = self.num_heads if side == "queries" else self.num_kv_heads
            table = make(self.ranges, shape, num_heads=heads, num_workers=self.num_workers)
            self._tables[key] = _upload(table, self.device)
        return self._tables[key]

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The ranges' ``lo`` and ``hi``, int32 ``[num_query_rows]``."""
        return torch.from_numpy(self.ranges.lo).to(self.device), torch.from_numpy(self.ranges.hi).to(self.device)

    @cached_property
    def seen_by(self) -> Tensor:
        """int32 ``[2, num_key_rows]``: the first query that sees each key row, and one past the last."""
        return torch.from_numpy(np.stack(seen_by(self.ranges))).to(self.device)

    def pad_blocks(self, first: int = 0) -> tuple[Tensor, Tensor]:
        """:func:`work.pad_blocks` on the device: of query rows before ``first``, and of the others counted from it."""
        if first not in self._pad_blocks:
            blocks = work.pad_blocks(self.ranges)
            is_later = blocks[:, 0] >= first
            later = blocks[is_later] - np.array([first, 0, 0], np.int32)
            parts = (torch.from_numpy(x).to(self.device) for x in (blocks[~is_later], later))
            self._pad_blocks[first] = next(parts), next(parts)
        return self._pad_blocks[first]

    def check(self, q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor) -> None:
        """Raise ValueError where the tensors are not those that the task was made for."""
        expected = {
            "q": (q_THD, self.ranges.num_query_rows, self.num_heads),
            "k": (k_SKD, self.ranges.num_key_rows, self.num_kv_heads),
            "v": (v_SKD, self.ranges.num_key_rows, self.num_kv_heads),
        }
        for name, (x, rows, heads) in expected.items():
            if x.shape != (rows, heads, q_THD.shape[-1]) or x.dtype != q_THD.dtype or x.device != self.device:
                raise ValueError(
                    f"{name} is {tuple(x.shape)} {x.dtype} on {x.device}; the task has "
                    f"({rows}, {heads}, {q_THD.shape[-1]}) {q_THD.dtype} on {self.device}"
                )


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _upload(table: WorkTable, device: torch.device) -> DeviceTable:
    tiles, order, workers = (torch.from_numpy(x).to(device) for x in (table.tiles, table.order, table.workers))
    return DeviceTable(tiles, order, workers, len(table.order), table.is_complete)
