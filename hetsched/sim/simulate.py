"""The simulator: a lowered program and its costs give the timeline that would come out."""

from __future__ import annotations

from collections.abc import Iterator

from hetsched import _core
from hetsched.check.flat import FlatProgram
from hetsched.check.memory import memory_changes
from hetsched.check.validate import Slots, check, run_to_end, slot_table
from hetsched.schedule.program import Program
from hetsched.sim.costs import Costs, Int64s, duration_array, message_times
from hetsched.sim.timeline import Span, Stream, Timeline, make_timeline


def simulate(program: Program, costs: Costs, *, slots: Slots = None, rendezvous: bool = False) -> Timeline:
    """The timeline of a lowered program; csrc/core/engine.h says how lanes and their engines work.

    Args:
        program: lowered by ``hetsched.lower``.
        costs: what its actions cost.
        slots, rendezvous: how transfers wait, see ``hetsched.check.validate``.

    Raises:
        ScheduleError: the program is not sound, or an action has no cost.
    """
    flat, run, times = _run(program, costs, slots=slots, rendezvous=rendezvous)
    curves = tuple(
        tuple(_memory_curve(flat, costs, run, lane)) for lane in range(len(program.lanes)) if costs.held_bytes.values
    )
    bound = flat.compiled.lower_bound(*times)
    return make_timeline(program, _spans(flat, run), memory=curves, lower_bound_ns=bound)


def simulated_makespan_ns(program: Program, costs: Costs) -> int:
    """That of the timeline, in a fraction of the time that it takes to make one; raises as ``simulate`` does."""
    _, run, _ = _run(program, costs, slots=None, rendezvous=False)
    return max(max(run.end, default=0), max(run.message_end, default=0))


def _run(
    program: Program, costs: Costs, *, slots: Slots, rendezvous: bool
) -> tuple[FlatProgram, _core.Run, tuple[Int64s, Int64s]]:
    """The program in the engine's form, how it ran, and what its actions and messages took."""
    flat = check(program)
    run_to_end(flat, slots=slots, rendezvous=rendezvous)
    durations, messages = duration_array(flat, costs), message_times(program, costs)
    run = flat.compiled.run(durations, messages, slot_table(flat, slots), rendezvous)
    return flat, run, (durations, messages)


def _spans(flat: FlatProgram, run: _core.Run) -> Iterator[Span]:
    """One span per compute action and collective, two per message."""
    starts, ends = run.start, run.end
    for lane, actions in enumerate(flat.program.lanes):
        for number, action in enumerate(actions, start=flat.lane_begin[lane]):
            if not action.kind.is_transfer:
                yield Span(lane, Stream.COMPUTE, starts[number], ends[number], action)
    every = [action for actions in flat.program.lanes for action in actions]
    times = zip(run.message_start, run.message_end, strict=True)
    for (source, destination, send, receive), (start, end) in zip(flat.compiled.messages, times, strict=True):
        yield Span(source, Stream.SEND, start, end, every[send], destination)
        yield Span(destination, Stream.RECEIVE, start, end, every[receive], source)


def _memory_curve(flat: FlatProgram, costs: Costs, run: _core.Run, lane: int) -> Iterator[tuple[int, int]]:
    """(time, bytes held from then on), one point per time at which they change."""
    total, point = 0, (0, 0)
    starts, ends = run.start, run.end
    for position, acquired, released in memory_changes(flat.program, lane, costs.held_bytes):
        number = flat.lane_begin[lane] + position
        for time, change in ((starts[number], acquired), (ends[number], -released)):
            if change and time != point[0]:
                yield point
            total += change
            point = (time, total) if change else point
    yield point
