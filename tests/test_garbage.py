"""The collector leaves alone what existed before the steps, and nothing else."""

from __future__ import annotations

import gc
import weakref

import pytest

from hetsched.runtime.garbage import long_lived


class Node:
    """It refers to itself, so only the collector ends it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_existed_before_is_not_looked_at_until_the_end() -> None:
    node = Node()
    before = weakref.ref(node)
    with long_lived():
        del node
        gc.collect()
        assert before() is not None
    gc.collect()
    assert before() is None


def test_what_is_lost_inside_is_collected() -> None:
    with long_lived():
        inside = weakref.ref(Node())
        gc.collect()
        assert inside() is None


def test_an_error_ends_it_too() -> None:
    with pytest.raises(RuntimeError), long_lived():
        raise RuntimeError
    assert gc.get_freeze_count() == 0
