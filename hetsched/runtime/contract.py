"""What a stage returned, held against its contract before it is used; see hetsched.runtime.stage.StageMeta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hetsched.errors import DataError
from hetsched.schedule.action import Action


def check_output(output: Any, action: Action, *, num_rows: int | None, needs_gradient: bool) -> None:
    """Refuse what would only be noticed elsewhere, or not at all.

    Args:
        output: of the stage's call.
        action: the forward.
        num_rows: that the stage has to return; None where it has to return a loss.
        needs_gradient: whether the stage has parameters that are trained, or is given rows of some that are.

    Raises:
        DataError: the message names module, stage and what to return.
    """
    if num_rows is None:
        if not (isinstance(output, tuple) and len(output) > 1 and isinstance(output[0], Tensor) and not output[0].ndim):
            raise _wrong(action, output, "(loss_sum, weight): a scalar tensor, not divided, and what it weighs")
        made, counts = output[0], output[1]
    else:
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != num_rows:
            raise _wrong(action, output, f"rows, [{num_rows}, hidden]")
        made, counts = output, num_rows
    # Of what counts for nothing, a constant is as good; only then is the host held by a weight on a GPU.
    if needs_gradient and torch.is_grad_enabled() and not made.requires_grad and counts:
        kind = "a loss" if num_rows is None else "rows"
        raise _wrong(action, output, f"{kind} that its rows and parameters made: what is detached trains none of them")


def _wrong(action: Action, output: Any, expected: str) -> DataError:
    found = _described(output)
    return DataError(f"stage {action.stage} of module {action.module} returned {found}; return {expected}")


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if isinstance(output, tuple):
        return f"({', '.join(map(_described, output))})"
    return f"an object of type {type(output).__name__}"
