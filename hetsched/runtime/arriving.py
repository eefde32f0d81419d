"""Rows on their way to this rank: messages in a room, and rows that this rank has itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hetsched.layout.rank_share import Addend, RankShare
from hetsched.runtime.events import Arrival


class Receive(Protocol):
    """Messages on their way."""

    def wait(self) -> Arrival | None:
        """Goes on, or makes the current stream go on, when they are there; returns that event, if it has one."""


class Arriving(Protocol):
    """Rows on their way to this rank."""

    def wait(self) -> torch.Tensor:
        """``[num_rows, hidden]``, once they are there; lent, maybe, until the exchange is told to give them back."""

    def take(self) -> torch.Tensor:
        """As ``wait``, in memory that is the caller's."""


class Placed:
    """Rows that come once each, in a room where they lie as they belong.

    Args:
        room: where messages arrive.
        share: of this rank; whose own rows go to their places, and zeros to where nothing comes.
        own: what the share's own rows are taken from.
        receive: of the messages.
        is_lent: whether the room is the transport's.
    """

    def __init__(
        self,
        room: torch.Tensor,
        share: RankShare,
        own: torch.Tensor | None,
        receive: Receive | None,
        *,
        is_lent: bool = False,
    ) -> None:
        self._room, self._share, self._own, self._receive, self._is_lent = room, share, own, receive, is_lent

    def wait(self) -> torch.Tensor:
        """As in Arriving."""
        # This rank's rows first: they are copied while others are on their way.
        if self._own is not None:
            pieces = self._share.own
            places = [self._room[of.to_row : of.to_row + of.num_rows] for of in pieces]
            copy_all(places, [self._own[of.row : of.row + of.num_rows] for of in pieces])
        for first, count in self._share.gaps:
            self._room[first : first + count].zero_()
        if self._receive is not None:
            self._receive.wait()
        return self._room

    def take(self) -> torch.Tensor:
        """As in Arriving."""
        rows = self.wait()
        return rows.clone() if self._is_lent else rows


class Summed:
    """Rows of which some come more than once: a room that holds the messages, and what they add up to.

    Args:
        room: where messages arrive.
        share: of this rank, which says what is added up in which order.
        own: what the share's own rows are taken from.
        receive: of the messages.
        rank: this one.
    """

    def __init__(
        self, room: torch.Tensor, share: RankShare, own: torch.Tensor | None, receive: Receive | None, *, rank: int
    ) -> None:
        self._room, self._share, self._own, self._receive, self._rank = room, share, own, receive, rank

    def wait(self) -> torch.Tensor:
        """As in Arriving."""
        if self._receive is not None:
            self._receive.wait()
        out = self._room.new_zeros(self._share.num_rows, self._room.shape[1])
        for addends in self._share.addends or ():
            to = [out[of.to_row : of.to_row + of.num_rows] for of in addends]
            torch._foreach_add_(to, [self._source(of)[of.row : of.row + of.num_rows] for of in addends])
        return out

    def _source(self, of: Addend) -> torch.Tensor:
        source = self._own if of.source == self._rank else self._room
        assert source is not None, "own rows were sent before"
        return source

    def take(self) -> torch.Tensor:
        """As in Arriving: what is summed is memory of its own."""
        return self.wait()


def copy_all(to: Sequence[torch.Tensor], source: Sequence[torch.Tensor]) -> None:
    """Copy each tensor to that of the same number, on a GPU in few launches."""
    torch._foreach_copy_(list(to), list(source))
