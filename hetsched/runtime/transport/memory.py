"""In whose memory rows arrive: what transports and carriers say of it that have none of their own to lend."""

from __future__ import annotations

import torch

from hetsched.runtime.exchange import Lender, Transfer


class OwnMemory:
    """A Lender that lends none: rows arrive in the exchange's memory."""

    def room(self, transfer: Transfer, num_rows: int) -> torch.Tensor | None:
        """As in Lender."""
        return None

    def give_back(self, transfer: Transfer) -> None:
        """As in Lender."""

    def lends(self, rows: torch.Tensor) -> bool:
        """As in Lender."""
        return False


class MemoryOfAnother:
    """A Lender that leaves it to another.

    Args:
        lender: the other one.
    """

    def __init__(self, lender: Lender) -> None:
        # Its own methods: a call in between takes the host time for every message.
        self.room, self.give_back, self.lends = lender.room, lender.give_back, lender.lends
