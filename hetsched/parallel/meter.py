"""What context-parallel attention tells of its messages, to whoever measures a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch.distributed as dist


class Passage(Protocol):
    """What one rank sends and receives together, on its way.

    It ends where one of the two last methods says, or else with the last wait.
    """

    def waiting(self) -> AbstractContextManager[Any]:
        """Inside, the current stream (on a CPU the host) waits for it."""

    def arrives_with(self, works: Sequence[dist.Work]) -> None:
        """It ends when these are done, whose ``wait`` makes the current stream wait; called once they are posted."""

    def arrived(self) -> None:
        """It ends when all is done that the current stream was given so far."""


class Meter(Protocol):
    """Is told of messages."""

    def passage(self, num_bytes: int) -> Passage:
        """It begins when all is done that the current stream was given so far.

        Args:
            num_bytes: that this rank sends, or fetches where it does so itself; 0 for a mere sign.
        """


class _Unmeasured:
    """Tells nobody."""

    def passage(self, num_bytes: int) -> Passage:
        return self

    def waiting(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def arrives_with(self, works: Sequence[dist.Work]) -> None:
        pass

    def arrived(self) -> None:
        pass


UNMEASURED: Meter = _Unmeasured()
