"""Bad placeholders found on a device: a record that kernels write, and the ValueError that it becomes.

A kernel cannot raise, and asking it costs a host synchronization. So a kernel that meets a bad index writes a
record of five integers and goes on; the first fault stays until it is read. ``raise_faults`` reads it where the
host synchronizes anyway. The CPU path raises at once, with the same words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

RECORD_LENGTH = 5
"""A record holds: the Fault, the position of the value in its argument, the value, the argument's length, a bound."""


class Fault(IntEnum):
    """What a kernel found wrong."""

    NONE = 0
    SLOT_OUT_OF_RANGE = 1
    SLOT_TWICE = 2
    ID_OUT_OF_RANGE = 3
    INDEX_OUT_OF_RANGE = 4
    INDEX_TWICE = 5
    ORDER_UNSORTED = 6
    CU_SEQLENS = 7


_WORDS = {
    Fault.SLOT_OUT_OF_RANGE: "slot {at}, but rows have {bound} rows in all",
    Fault.SLOT_TWICE: "slot {at} and so does another position; a row of rows fills one position",
    Fault.ID_OUT_OF_RANGE: "ids {at}, but the vocabulary has {bound} ids (-1 stands for a zero row)",
    Fault.INDEX_OUT_OF_RANGE: "index {at}, but there are {bound} rows",
    Fault.INDEX_TWICE: "index {at} and so does another position; each row is used once",
    Fault.ORDER_UNSORTED: "order {at}, which does not sort ids by (id, position) with modality rows last",
    Fault.CU_SEQLENS: "cu_seqlens {at}; it must start at 0, never fall, rise by at most max_seqlen and end at {bound}",
}


def fault_error(record: Sequence[int]) -> ValueError:
    """The error that a record stands for, naming the argument, its shape and the value."""
    fault, position, value, length, bound = record
    at = f"of shape [{length}] has {value} at position {position}"
    return ValueError(_WORDS[Fault(fault)].format(at=at, bound=bound))


@functools.cache
def fault_record(device: torch.device) -> Tensor:
    """The record of one device, int64 ``[RECORD_LENGTH]``; zeros while nothing is wrong.

    There is one per device and process, as CUDA has one sticky error per context, so that a module deep inside a
    model needs no handle to report through.

    Raises:
        RuntimeError: the first use falls into the capture of a CUDA graph, whose replays would clear the record.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("call the row operation once before capturing it in a CUDA graph")
    with torch.inference_mode(False):
        return torch.zeros(RECORD_LENGTH, dtype=torch.int64, device=device)


def raise_faults(device: torch.device | str) -> None:
    """Raises what row kernels found wrong on ``device`` since the last call; synchronizes with it.

    Raises:
        ValueError: placeholders or ids were out of range, used twice or unsorted; names argument, shape and value.
    """
    # A tensor's device has its index filled in.
    record = fault_record(torch.empty(0, device=device).device)
    found = record.tolist()
    if found[0] != Fault.NONE:
        record.zero_()
        raise fault_error(found)
