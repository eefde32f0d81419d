"""Signatures of the compiled core (csrc/bind); the documented faces are in the packages that use it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

def assign_longest_first(costs: Sequence[int], loads: Sequence[int]) -> list[int]: ...
def forward_route(uses: IntArray, producers: IntArray, consumers: IntArray, host_of: IntArray) -> IntArray: ...
def backward_route(
    uses: IntArray, producers: IntArray, consumers: IntArray, host_of: IntArray, partial: bool
) -> IntArray: ...
