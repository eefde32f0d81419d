"""In whose memory rows arrive: what transports say of it that have none of their own to lend."""

from __future__ import annotations

import torch

from hetsched.runtime.exchange import Transfer, Transport


class OwnMemory:
    """The part of a Transport that lends no memory: rows arrive in the exchange's."""

    def room(self, transfer: Transfer, num_rows: int) -> torch.Tensor | None:
        """As in Transport."""
        return None

    def give_back(self, transfer: Transfer) -> None:
        """As in Transport."""

    def lends(self, rows: torch.Tensor) -> bool:
        """As in Transport."""
        return False


class MemoryOfAnother:
    """The part of a Transport around another one that leaves memory to that.

    Args:
        transport: the other one.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def room(self, transfer: Transfer, num_rows: int) -> torch.Tensor | None:
        """As in Transport."""
        return self._transport.room(transfer, num_rows)

    def give_back(self, transfer: Transfer) -> None:
        """As in Transport."""
        self._transport.give_back(transfer)

    def lends(self, rows: torch.Tensor) -> bool:
        """As in Transport."""
        return self._transport.lends(rows)
