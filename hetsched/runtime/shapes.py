"""Which steps may load a kernel: those with calls of sizes that no step before them had.

Libraries choose kernels by size, and each is loaded with its first launch. Sizes that differ by less than a quarter
count as alike, so after the first steps hardly any is new. That is a guess: a library may still choose another kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from hetsched.schedule.action import Kind
from hetsched.schedule.program import Program
from hetsched.stepplan import StepPlan


class SeenShapes:
    """The sizes of the steps so far, on all ranks: every rank of a job comes to the same answers."""

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._calls: tuple[Program, set[tuple[str, tuple[int, ...]]]] | None = None

    def add(self, step: StepPlan, *, is_training: bool) -> bool:
        """Remember a step's sizes; whether any is new."""
        if self._calls is None or self._calls[0] is not step.program:
            self._calls = (step.program, _forward_calls(step.program))
        new = {(is_training, *size) for size in _sizes(step, self._calls[1])} - self._seen
        self._seen |= new
        return bool(new)


def _forward_calls(program: Program) -> set[tuple[str, tuple[int, ...]]]:
    """The modules that run, each with the microbatches of one call; a backward has the sizes of its forward."""
    parts = (part for lane in program.lanes for action in lane for part in action.flat())
    return {(part.module, tuple(part.microbatches)) for part in parts if part.kind is Kind.F}


def _sizes(step: StepPlan, calls: set[tuple[str, tuple[int, ...]]]) -> Iterator[tuple[Hashable, ...]]:
    for module, microbatches in calls:
        recomputes = step.recomputed.get(module, frozenset()) >= set(microbatches)
        for replica, held in enumerate(zip(*(step.shares[module, m] for m in microbatches), strict=True)):
            for cp in {cp for of in held for cp in of.cp_ranks}:
                num_tokens, num_rows = sum(of.num_tokens(cp) for of in held), sum(of.num_rows(cp) for of in held)
                yield module, replica, cp, recomputes, _class_of(num_tokens), _class_of(num_rows)
    for (edge, _), crossing in step.crossings.items():
        for rank in crossing.index:
            yield edge, rank, _class_of(crossing.num_arriving(rank))


def _class_of(size: int) -> int:
    """Four classes between one power of two and the next."""
    shift = max(0, size.bit_length() - 3)
    return size >> shift << shift
