"""Which implementation of attention runs: chosen by what the inputs allow, visible, and open to being forced."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["naive", "triton", "hopper"]

log = logging.getLogger("hetsched")


def choose(q_THD: Tensor, *, forced: Backend | None = None) -> Backend:
    """The backend for inputs like ``q_THD``.

    Naive on CPUs and for float32 and float64; the Gluon kernels on sm_90 for 16-bit inputs with head dim 64 or
    128 where this Triton has what they need; otherwise portable Triton.

    Raises:
        ValueError: the forced backend cannot run these inputs.
    """
    reason = _why_not_hopper(q_THD)
    if forced == "hopper" and reason is not None:
        raise ValueError(f"backend 'hopper' cannot run here: {reason}; use 'triton' or None")
    if forced is not None:
        return forced
    if not q_THD.is_cuda or q_THD.dtype not in (torch.bfloat16, torch.float16):
        return "naive"
    return "hopper" if reason is None else "triton"


def _why_not_hopper(q_THD: Tensor) -> str | None:
    if not q_THD.is_cuda or torch.cuda.get_device_capability(q_THD.device) != (9, 0):
        return "the device is not sm_90"
    if q_THD.dtype not in (torch.bfloat16, torch.float16):
        return f"dtype {q_THD.dtype} is not a 16-bit float"
    if q_THD.shape[-1] not in (64, 128):
        return f"head dim {q_THD.shape[-1]} is not 64 or 128"
    if load_hopper() is None:
        return "this Triton lacks a private call that the kernels need"
    return None


@cache
def load_hopper(load: Callable[[], ModuleType] | None = None) -> ModuleType | None:
    """The module with the Gluon kernels, or None, with one visible warning, where this Triton cannot build them."""
    try:
        return (load or _import_hopper)()
    except (ImportError, AttributeError, TypeError) as error:
        message = f"attention falls back to the portable kernels: this Triton cannot build the Hopper ones ({error})"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        log.warning(message)
        return None


def _import_hopper() -> ModuleType:
    from hetsched.kernels.attention import hopper

    return hopper
