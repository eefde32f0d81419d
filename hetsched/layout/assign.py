"""Jobs to bins by cost: samples to replicas, items to encoder replicas."""

from __future__ import annotations

from collections.abc import Sequence

from hetsched import _core


def assign_longest_first(costs: Sequence[int], *, num_bins: int, loads: Sequence[int] | None = None) -> list[int]:
    """The bin of each job, so that the bins' loads come out nearly equal.

    The costliest job goes first, into the bin with the smallest load so far; ties go to the smaller
    index, so that every rank finds the same answer. With positive costs and equal initial loads no bin stays empty
    when there are at least as many jobs as bins.

    Args:
        costs: cost of each job, at least 0.
        num_bins: number of bins; a bin may take any number of jobs.
        loads: what each bin already has to do; nothing by default.

    Returns:
        For each job the index of its bin.

    Raises:
        ValueError: no bins, a negative cost, or not one load per bin.

    Source: Graham 1969, longest processing time first; the largest load is at most 4/3 of the optimum.
    """
    if loads is None:
        loads = [0] * num_bins
    if len(loads) != num_bins:
        raise ValueError(f"loads: expected one per bin, {num_bins}, got {len(loads)}")
    return _core.assign_longest_first(costs, loads)


def attention_cost(num_tokens: int, *, quadratic: int, linear: int) -> int:
    """The cost of a sequence of ``num_tokens``: attention grows with its square, all else with its length."""
    return quadratic * num_tokens * num_tokens + linear * num_tokens
