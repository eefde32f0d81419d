"""Signatures of csrc/cuda/python.cpp; the documented faces are in hetsched.kernels.put. Importing it needs torch."""

def put_message(
    rows: int,
    num_rows: int,
    row_bytes: int,
    pieces: tuple[tuple[int, int, int], ...],
    room: int,
    room_bytes: int,
    arrived: int,
    number: int,
    returned: int,
    awaited: int,
    ticket: int,
    num_blocks: int,
    stream: int,
    done: int,
    device: int,
    /,
) -> None: ...
def wait_for_counts(addresses: tuple[int, ...], values: tuple[int, ...], seen: int, device: int, /) -> None: ...
def stream_write_value(address: int, value: int, device: int, /) -> None: ...
