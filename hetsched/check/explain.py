"""Faults of a program in words, with the lanes around them."""

from __future__ import annotations

from hetsched.check.flat import Fault
from hetsched.check.grid import draw
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.program import Program


def explain(program: Program, fault: Fault) -> str:
    """The fault in words, and the lanes around it."""
    lane, position = fault.lane, fault.position
    action = program.lanes[lane][position] if position >= 0 else None
    words = _EXPLANATIONS[fault.kind](program, fault, action)
    marks = {fault.other_lane: fault.other_position} if fault.other_position >= 0 else {}
    marks[lane] = position if position >= 0 else len(program.lanes[lane])
    where = f"lane {lane}, action {position}" if action else f"lane {lane}"
    return f"{where}: {words}\n{draw(program, marks=marks, arrow=lane)}"


def _no_such_stage(program: Program, fault: Fault, action: Action | None) -> str:
    assert fault.wanted is not None
    part, topology = fault.wanted, program.topology
    if "->" in part.module:
        edge = topology.edge(part.module)
        last = topology.module(edge.producer).num_stages - 1
        return f"{action}: {edge.name} leads from stage {last} to stage {edge.stage}, and has transfers only"
    return f"{action}: {part.module} has stages 0 to {topology.module(part.module).num_stages - 1}"


def _not_on_lane(program: Program, fault: Fault, action: Action | None) -> str:
    assert fault.wanted is not None
    part, topology = fault.wanted, program.topology
    module = part.module
    if "->" in module:
        edge = topology.edge(module)
        module = edge.producer if part.kind in (Kind.SEND_F, Kind.RECV_B) else edge.consumer
    lanes = topology.module(module).lanes(part.stage)
    return f"{action}: this lane does not hold {module}:{part.stage}; lanes {list(lanes)} do"


def _microbatch_range(program: Program, fault: Fault, action: Action | None) -> str:
    if action is not None and action.kind.is_collective:
        return f"{action}: {action.kind} is of the whole step and takes no microbatch"
    return f"{action}: the step has microbatches 0 to {program.num_microbatches - 1}"


def _window_of_transfer(program: Program, fault: Fault, action: Action | None) -> str:
    return f"{action}: a transfer carries one microbatch; write one for each"


def _duplicate(program: Program, fault: Fault, action: Action | None) -> str:
    return f"{action} is done twice: also by {_other(program, fault)}"


def _frozen(program: Program, fault: Fault, action: Action | None) -> str:
    return f"{action}: this module has no backward (it is frozen, and nothing behind it trains)"


def _backward_twice(program: Program, fault: Fault, action: Action | None) -> str:
    return f"{action}: a microbatch has either B, or I and W; {_other(program, fault)} is there too"


def _missing(program: Program, fault: Fault, action: Action | None) -> str:
    if action is None:
        return f"{fault.wanted} is missing"
    if fault.wanted in tuple(action.flat()):
        return f"{action} happens on several lanes at once, but is missing from lane {fault.other_lane}"
    return f"{action} needs {fault.wanted}, which is missing from lane {fault.other_lane}"


def _used_before_exists(program: Program, fault: Fault, action: Action | None) -> str:
    assert action is not None
    assert fault.wanted is not None
    if action.kind is Kind.REDUCE_GRAD:
        return f"{action} reduces gradients that {_other(program, fault)} has yet to add to"
    is_backward = any(part.kind in (Kind.B, Kind.I) for part in action.flat())
    if is_backward and fault.wanted.kind is Kind.F:
        return f"{action} is a backward before its forward, {_other(program, fault)}"
    return f"{action} uses the result of {fault.wanted} before it exists: that is {_other(program, fault)}"


def _nothing_to_transfer(program: Program, fault: Fault, action: Action | None) -> str:
    return (
        f"{action} has nothing to transfer: no other stage is there, or it lies on the same lane, or no lane makes or "
        "needs the rows of this microbatch"
    )


def _out_of_order(program: Program, fault: Fault, action: Action | None) -> str:
    return f"{action} is out of order: the next message on its channel is that of {_other(program, fault)}"


def _not_unsharded(program: Program, fault: Fault, action: Action | None) -> str:
    if action is not None and action.kind is Kind.UNSHARD:
        return f"{action}: the parameters are already unsharded"
    return f"{action}: the parameters of this stage are not unsharded; put UNSHARD before"


def _other(program: Program, fault: Fault) -> str:
    other = program.lanes[fault.other_lane][fault.other_position]
    return f"{other} (lane {fault.other_lane}, action {fault.other_position})"


# In the order of the enum FaultKind in csrc/core/program.h.
_EXPLANATIONS = (
    _no_such_stage,
    _not_on_lane,
    _microbatch_range,
    _window_of_transfer,
    _duplicate,
    _frozen,
    _backward_twice,
    _missing,
    _used_before_exists,
    _nothing_to_transfer,
    _out_of_order,
    _not_unsharded,
)
