"""Signatures of the compiled core (csrc/bind); the documented faces are in the packages that use it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hetsched.schedule.action import Action, Kind

IntArray = NDArray[np.int64]

def assign_longest_first(costs: Sequence[int], loads: Sequence[int]) -> list[int]: ...

PartTuple: TypeAlias = tuple[int, int, int, int, int]
FaultTuple: TypeAlias = tuple[int, int, int, int, int, PartTuple | None]
Int64s: TypeAlias = NDArray[np.int64]

class Run:
    start: list[int]
    end: list[int]
    message_start: list[int]
    message_end: list[int]
    max_in_flight: list[int]
    stopped_at: list[int]
    waits: list[tuple[int, int, int, int]]
    makespan: int

class CompiledProgram:
    messages: list[tuple[int, int, int, int]]
    def run(self, durations: Int64s, message_times: Int64s, slots: Int64s, is_rendezvous: bool) -> Run: ...
    def durations(self, table: Int64s) -> Int64s: ...
    def lower_bound(self, durations: Int64s, message_times: Int64s) -> int: ...

def compile_program(
    lanes: tuple[tuple[Action, ...], ...],
    num_microbatches: int,
    modules: Sequence[tuple[Sequence[Sequence[Sequence[int]]], bool, bool]],
    edges: Sequence[tuple[int, int, int]],
    kinds: tuple[Kind, ...],
    names: dict[str, int],
) -> CompiledProgram | FaultTuple: ...

PlacedTuple: TypeAlias = tuple[int, int, bool, int, int, int]

class EncoderWork:
    def __init__(
        self,
        edge: int,
        lanes: Sequence[int],
        item_begin: Sequence[int],
        costs: tuple[Sequence[int], Sequence[int]],
        has_backward: bool,
        state: tuple[int, bool],
    ) -> None: ...

class BareProgram:
    def __init__(
        self,
        lanes: tuple[tuple[Action, ...], ...],
        num_microbatches: int,
        modules: Sequence[tuple[Sequence[Sequence[Sequence[int]]], bool, bool]],
        edges: Sequence[tuple[int, int, int]],
        kinds: tuple[Kind, ...],
        names: dict[str, int],
        waits: Sequence[tuple[int, int]],
    ) -> None: ...
    def place_encoder(
        self, durations: Int64s, work: EncoderWork, budget: int
    ) -> tuple[list[PlacedTuple], list[int], int, int, int]: ...
    def order(self, edge: int) -> list[int]: ...
    def earliest_starts(self, durations: Int64s, edge: int) -> list[int]: ...
    def limit_in_flight(self, durations: Int64s, edge: int, in_flight: int, latency: int) -> list[int]: ...

def forward_route(uses: IntArray, producers: IntArray, consumers: IntArray, host_of: IntArray) -> IntArray: ...
def backward_route(
    uses: IntArray, producers: IntArray, consumers: IntArray, host_of: IntArray, partial: bool
) -> IntArray: ...
def pack_best_fit(lengths: IntArray, capacity: int) -> IntArray: ...
def pack_in_order(lengths: IntArray, capacity: int) -> IntArray: ...
def spread_zigzag(num_tokens: int, cp: int, sp: int) -> IntArray: ...
def plan_tokens(cu_seqlens: IntArray, cp: int, sp: int, shortest_cut: int, quadratic: int, linear: int) -> IntArray: ...
