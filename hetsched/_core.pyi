"""Signatures of the compiled core (csrc/bind); the documented faces are in the packages that use it."""

from collections.abc import Sequence

def assign_longest_first(costs: Sequence[int], loads: Sequence[int]) -> list[int]: ...
