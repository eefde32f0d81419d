"""Grids made into torch device meshes, and what a builder is told of its module's mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from hetsched.layout.grid import Grid

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
    """

    module: str
    num_stages: int
    device: torch.device
    dtype: torch.dtype
    device_mesh: DeviceMesh


def make_meshes(grids: Mapping[str, Grid], *, device_type: str) -> dict[str, DeviceMesh]:
    """A device mesh per module. Every rank calls this with equal grids: process groups are made in the same order."""
    meshes = {}
    for name, grid in grids.items():
        shape = (grid.layout.pp, grid.layout.dp, grid.layout.cp, grid.layout.tp)
        ranks = torch.tensor(grid.ranks).reshape(shape)
        meshes[name] = DeviceMesh(device_type, ranks, mesh_dim_names=AXES)
    return meshes


def copies_group(mesh: DeviceMesh) -> dist.ProcessGroup | None:
    """The ranks that hold a copy of this rank's stages and do different work; None where it is alone."""
    return mesh.get_group("dp") if mesh.size(AXES.index("dp")) > 1 else None
