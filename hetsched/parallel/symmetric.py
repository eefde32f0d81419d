"""Which ranks of a host may share memory by torch's symmetric memory, so that none waits for another for ever.

Torch counts the rendezvous of a process, and not of a group, and ranks whose counts differ do not find each other
(pytorch issue 196082). A rank that met in one group besides would so miss the next rendezvous of another. Memory that
grows makes one whenever it grows, so a process shares memory with one set of ranks for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Iterable

_reserved: set[frozenset[int]] = set()


def is_reserved_for_others(ranks: Iterable[int]) -> bool:
    """Whether this process shares memory with another set of ranks than these.

    Args:
        ranks: of the whole job, this one among them.
    """
    return bool(_reserved - {frozenset(ranks)})


def reserve(ranks: Iterable[int]) -> None:
    """From here on this process shares memory with these ranks; all of them have agreed on it."""
    _reserved.add(frozenset(ranks))
