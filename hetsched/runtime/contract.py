"""What a stage returned, held against its contract before it is used; see hetsched.runtime.stage.StageMeta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hetsched.errors import DataError
from hetsched.schedule.action import Action

_MADE = "that its rows and parameters made: what is detached trains none of them"


def check_rows(output: Any, action: Action, *, num_rows: int, are_of_items: bool, needs_gradient: bool) -> None:
    """Refuse rows that would only be noticed elsewhere, or not at all.

    Args:
        output: of the stage's call.
        action: the forward.
        num_rows: that the stage has to return.
        are_of_items: whether that is what its items are described with, and not how many tokens it was given.
        needs_gradient: whether the stage has parameters that are trained, or is given rows of some that are.

    Raises:
        DataError: the message names module, stage and what to return.
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != num_rows:
        why = (
            f": {num_rows} is the sum of its items' num_rows; change the stage or Item.num_rows" if are_of_items else ""
        )
        raise _wrong(action, output, f"rows, [{num_rows}, hidden]{why}")
    if needs_gradient and num_rows and _is_cut_off(output):
        raise _wrong(action, output, f"rows {_MADE}")


def check_loss(output: Any, action: Action, *, num_tokens: int, needs_gradient: bool) -> None:
    """As ``check_rows``, for what the sink's last stage returns of ``num_tokens`` tokens."""
    if not (isinstance(output, tuple) and len(output) in (2, 3) and _is_scalar(output[0])):
        raise _wrong(action, output, "(loss_sum, weight): a scalar tensor, not divided, and what it weighs")
    if len(output) == 3 and not (isinstance(output[2], Tensor) and output[2].shape[:1] == (num_tokens,)):
        raise _wrong(action, output, f"(loss_sum, weight), or after them a tensor of its tokens, [{num_tokens}, ...]")
    # What weighs nothing may be a constant; only then is the host held by a weight that is on a GPU.
    if needs_gradient and _is_cut_off(output[0]) and output[1]:
        raise _wrong(action, output, f"a loss {_MADE}")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.ndim


def _is_cut_off(made: Tensor) -> bool:
    return torch.is_grad_enabled() and not made.requires_grad


def _wrong(action: Action, output: Any, expected: str) -> DataError:
    found = _described(output)
    return DataError(f"stage {action.stage} of module {action.module} returned {found}; return {expected}")


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if isinstance(output, tuple):
        return f"({', '.join(map(_described, output))})"
    return f"an object of type {type(output).__name__}"
