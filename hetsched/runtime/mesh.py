"""Grids made into torch device meshes, and what a builder is told of its module's mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh

from hetsched.layout.grid import Grid
from hetsched.parallel.meter import UNMEASURED, Meter

AXES = ("pp", "dp", "cp", "tp")


@dataclass(frozen=True)
class ModuleMesh:
    """What a builder may need of its surroundings.

    Args:
        module: the module's name.
        num_stages: stages of the module.
        device: where the stage's parameters belong.
        dtype: of its parameters and rows.
        device_mesh: dims ``pp, dp, cp, tp``; this rank is in it.
        context_group: the context-parallel ranks that share this rank's sequences, by cp rank, in a group of their own;
            None where it has them alone.
        meter: to be told of the messages in that group.
    """

    module: str
    num_stages: int
    device: torch.device
    dtype: torch.dtype
    device_mesh: DeviceMesh
    context_group: dist.ProcessGroup | None
    meter: Meter = UNMEASURED


def make_meshes(grids: Mapping[str, Grid], *, device_type: str) -> dict[str, DeviceMesh]:
    """A device mesh per module. Every rank calls this with equal grids: process groups are made in the same order."""
    meshes = {}
    for name, grid in grids.items():
        shape = (grid.layout.pp, grid.layout.dp, grid.layout.cp, grid.layout.tp)
        ranks = torch.tensor(grid.ranks).reshape(shape)
        meshes[name] = DeviceMesh(device_type, ranks, mesh_dim_names=AXES)
    return meshes


@dataclass(frozen=True)
class ModuleGroups:
    """The process groups of one module that this rank is in; None where it would be alone.

    They are groups of their own, also where others have the same ranks: messages never mix with those of the default
    group.

    Args:
        context: the context-parallel ranks that share this rank's sequences.
        copies: the ranks that hold a copy of this rank's stages and do different work: data-parallel ranks have other
            samples, context-parallel ones other tokens.
    """

    context: dist.ProcessGroup | None
    copies: dist.ProcessGroup | None


def make_groups(grids: Mapping[str, Grid], *, timeout: timedelta | None) -> dict[str, ModuleGroups]:
    """The groups of each module. Every rank calls this with equal grids: groups are made in the same order.

    Args:
        grids: of the modules.
        timeout: how long ranks wait for each other in a group; torch's own if None.
    """
    groups = {}
    for name, grid in grids.items():
        d = grid.layout
        ranks = np.reshape(grid.ranks, (d.pp, d.dp, d.cp, d.tp))
        context = np.moveaxis(ranks, 2, -1).reshape(-1, d.cp)
        copies = np.moveaxis(ranks, 3, 1).reshape(-1, d.dp * d.cp)
        groups[name] = ModuleGroups(_group_of(context, timeout), _group_of(copies, timeout))
    return groups


def _group_of(ranks: NDArray[np.int64], timeout: timedelta | None) -> dist.ProcessGroup | None:
    """Of groups with the ranks of each row the one that this rank is in."""
    if ranks.shape[1] == 1:
        return None
    of_rows = [(row, dist.new_group(row, timeout=timeout)) for row in ranks.tolist()]
    return next((group for row, group in of_rows if dist.get_rank() in row), None)
