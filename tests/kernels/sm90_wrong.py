"""Kernels that the checks of :mod:`tests.kernels.sm90` must refuse."""

from __future__ import annotations

from collections.abc import Iterator

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from hetsched.kernels.attention.hopper_support import barriers
from tests.kernels.sm90 import Kernel, arguments


@gluon.jit
def _wait(of):
    mbarrier.wait(of.index(0), 0)


@gluon.jit
def _arrive(of):
    mbarrier.arrive(of.index(0), count=1)


@gluon.jit
def one_barrier_is_idle():
    used = barriers(1, 1)
    barriers(2, 1)
    gl.warp_specialize([(_wait, (used,)), (_arrive, (used,))], [4], [24])


def kernels() -> Iterator[Kernel]:
    """Of two blocks of barriers one is idle."""
    kernel = one_barrier_is_idle
    yield Kernel(kernel.__name__, GluonASTSource(fn=kernel, **arguments(kernel, {}, {})))
