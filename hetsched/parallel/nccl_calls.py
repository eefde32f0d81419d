"""NCCL's own functions, on the communicators of torch's process groups: torch's calls take the host twice as long.

The functions are looked up in ``libtorch_cuda.so``, which has loaded the NCCL that torch calls, wherever that lies.
Process groups know nothing of what is moved here: the step's own watchdog ends a process that stands still.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hetsched.errors import JobError

_TORCH_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
_BYTE, _SUM = 0, 0
"""``ncclInt8`` and ``ncclSum``."""
_TYPES = {torch.float32: 7, torch.float64: 8}
"""NCCL's names of what it adds up here."""
_SUCCESS, _IN_PROGRESS = 0, 7
_POINTER = ctypes.c_void_p


@functools.cache
def missing() -> str | None:
    """Why NCCL's functions cannot be called here; None if they can."""
    try:
        functions()
    except (OSError, AttributeError) as error:
        return f"NCCL's functions were not found through {_TORCH_LIBRARY.name}: {error}"
    return None


@functools.cache
def functions() -> Any:
    """NCCL's functions. Raises OSError or AttributeError: they are not to be found."""
    found = ctypes.CDLL(str(_TORCH_LIBRARY))
    for move in (found.ncclSend, found.ncclRecv):
        # Rows, their number, what one is, the place of the peer, communicator, stream.
        move.argtypes = (_POINTER, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, _POINTER, _POINTER)
    # Values, where the result goes, their number, what one is, how they are added up, communicator, stream.
    found.ncclAllReduce.argtypes = (_POINTER, *move.argtypes[:2], ctypes.c_int, ctypes.c_int, _POINTER, _POINTER)
    found.ncclAllGather.argtypes = (_POINTER, *move.argtypes[:2], ctypes.c_int, _POINTER, _POINTER)
    for bracket in (found.ncclGroupStart, found.ncclGroupEnd):
        bracket.argtypes = ()
    found.ncclCommGetAsyncError.argtypes = (_POINTER, ctypes.POINTER(ctypes.c_int))
    found.ncclGetErrorString.restype = ctypes.c_char_p
    return found


class Communicator:
    """That of one process group.

    Args:
        handle: NCCL's.

    Raises:
        JobError: NCCL's functions cannot be called here.
    """

    def __init__(self, handle: int) -> None:
        if (reason := missing()) is not None:
            raise JobError(reason)
        self._handle, self._functions = handle, functions()

    @classmethod
    def of(cls, group: dist.ProcessGroup, device: torch.device) -> Communicator:
        """That of a group; collective, on the current device."""
        backend: Any = group._get_backend(device)
        # Where the job's ranks are bound to devices a new group is connected already, and would connect once more.
        if not backend._comm_ptr():
            backend.eager_connect_single_device(device)
        return cls(backend._comm_ptr())

    def move(self, rows: Sequence[tuple[int, int, int]], stream: int, *, is_send: bool) -> None:
        """Send or receive rows, all of them at once.

        Args:
            rows: address, number of bytes, and the place in the group of whom they go to or come from.
            stream: what it is enqueued on, CUDA's handle.
            is_send: otherwise they are received.

        Raises:
            JobError: NCCL refuses.
        """
        calls, handle = self._functions, self._handle
        move = calls.ncclSend if is_send else calls.ncclRecv
        # One alone needs no group, and every call takes the host's time.
        is_group = len(rows) > 1
        results = [calls.ncclGroupStart()] if is_group else []
        results += [move(address, num_bytes, _BYTE, place, handle, stream) for address, num_bytes, place in rows]
        if is_group:
            results.append(calls.ncclGroupEnd())
        self._check_all(results)

    def all_to_all(self, sent: int, received: int, part_bytes: int, stream: int, *, num_ranks: int) -> None:
        """Part i of every rank's memory to rank i, which receives them by the places of the ranks.

        Args:
            sent: address of what is sent, ``[num_ranks, part_bytes]``.
            received: of where parts are received, of the same shape.
            part_bytes: of a part.
            stream: as in ``move``.
            num_ranks: of the group.

        Raises:
            JobError: NCCL refuses.
        """
        calls, handle = self._functions, self._handle
        results = [calls.ncclGroupStart()]
        for place in range(num_ranks):
            first = place * part_bytes
            results.append(calls.ncclSend(sent + first, part_bytes, _BYTE, place, handle, stream))
            results.append(calls.ncclRecv(received + first, part_bytes, _BYTE, place, handle, stream))
        results.append(calls.ncclGroupEnd())
        self._check_all(results)

    def all_gather(self, part: int, whole: int, part_bytes: int, stream: int) -> None:
        """Every rank's part to all of them, one after the other by the places of the ranks.

        Args:
            part: address of this rank's.
            whole: of where all of them go.
            part_bytes: of one part.
            stream: as in ``move``.

        Raises:
            JobError: NCCL refuses.
        """
        self._check_all([self._functions.ncclAllGather(part, whole, part_bytes, _BYTE, self._handle, stream)])

    def all_reduce(self, values: int, num_values: int, dtype: torch.dtype, stream: int) -> None:
        """The sum over the ranks, in place.

        Args:
            values: their address.
            num_values: on each rank.
            dtype: float32 or float64.
            stream: as in ``move``.

        Raises:
            JobError: NCCL refuses.
        """
        add = self._functions.ncclAllReduce
        self._check_all([add(values, values, num_values, _TYPES[dtype], _SUM, self._handle, stream)])

    def _check_all(self, results: Sequence[int]) -> None:
        for result in results:
            if result != _SUCCESS:
                self._check(self._settled() if result == _IN_PROGRESS else result)

    def _settled(self) -> int:
        """What has come of calls that were in progress, as those of communicators that do not block may be."""
        state = ctypes.c_int(_IN_PROGRESS)
        while state.value == _IN_PROGRESS:
            self._check(self._functions.ncclCommGetAsyncError(self._handle, ctypes.byref(state)))
        return state.value

    def _check(self, result: int) -> None:
        if result != _SUCCESS:
            raise JobError(f"NCCL: {self._functions.ncclGetErrorString(result).decode()}")
