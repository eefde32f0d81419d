"""The simulator again, from its description alone: one clock, dictionaries, and nothing prepared.

What follows csrc/core/engine.h in rules shares nothing with it in code; the two must agree to the nanosecond.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hetsched.check.validate import Slots
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.program import Program
from hetsched.sim.costs import Costs, Link

SENDS = (Kind.SEND_F, Kind.SEND_B)
RECEIVES = (Kind.RECV_F, Kind.RECV_B)
OPPOSITE = dict(zip(SENDS + RECEIVES, RECEIVES + SENDS, strict=True))


def other_end(program: Program, action: Action) -> Action:
    """The RECV of a SEND, and the SEND of a RECV."""
    topology = program.topology
    if "->" in action.module:
        edge = topology.edge(action.module)
        is_producer_end = action.kind in (Kind.SEND_F, Kind.RECV_B)
        stage = edge.stage if is_producer_end else topology.module(edge.producer).num_stages - 1
    else:
        stage = action.stage + (1 if action.kind in (Kind.SEND_F, Kind.RECV_B) else -1)
    return act(action.module, stage, OPPOSITE[action.kind], action.first)


def peers(program: Program, lane: int, action: Action) -> list[int]:
    """The lanes that a transfer talks with: those that have its other end, in the gang of the same number."""
    there = other_end(program, action)
    lanes = [other for other, actions in enumerate(program.lanes) if there in actions]
    if "->" in action.module:
        return lanes
    stages = program.topology.module(action.module).stages
    mine, theirs = stages[action.stage], stages[there.stage]
    if len(mine) != len(theirs):
        return lanes
    number = next(i for i, gang in enumerate(mine) if lane in gang)
    return [other for other in lanes if other in theirs[number]]


@dataclass
class Message:
    """One message of a SEND to one lane."""

    send: Action
    source: int
    destination: int
    duration: int
    posted: int | None = None
    start: int | None = None
    end: int | None = None


@dataclass
class Twin:
    """One simulated step; ``run`` gives whether all lanes came to their end."""

    program: Program
    costs: Costs
    slots: Slots = None
    rendezvous: bool = False
    now: int = 0
    spans: dict[tuple[int, Action], tuple[int, int]] = field(default_factory=dict)
    messages: dict[tuple[int, int, Action], Message] = field(default_factory=dict)
    reached: set[tuple[int, Action]] = field(default_factory=set)
    done: set[tuple[int, Action]] = field(default_factory=set)

    def run(self) -> bool:
        lanes = range(len(self.program.lanes))
        self.position = dict.fromkeys(lanes, 0)
        self.busy_until = dict.fromkeys(lanes, 0)
        self.queue: dict[int, list[Message]] = defaultdict(list)
        while True:
            while sum(self.step(lane) for lane in lanes):
                pass
            self.start_transfers()
            later = [t for t in self.busy_until.values() if t > self.now]
            later += [m.end for m in self.messages.values() if m.end is not None and m.end > self.now]
            if not later:
                return all(self.position[lane] == len(self.program.lanes[lane]) for lane in lanes)
            self.now = min(later)

    def step(self, lane: int) -> bool:
        """Does what the lane can do now; whether anything changed."""
        actions = self.program.lanes[lane]
        if self.position[lane] == len(actions) or self.busy_until[lane] > self.now:
            return False
        action = actions[self.position[lane]]
        is_new = (lane, action) not in self.reached
        self.reached.add((lane, action))
        if action.kind in SENDS:
            changed, is_done = self.send(lane, action)
        elif action.kind in RECEIVES:
            changed, is_done = False, self.receive(lane, action)
        else:
            return self.compute(lane, action) or is_new
        if is_done:
            self.done.add((lane, action))
            self.position[lane] += 1
        return changed or is_done or is_new

    def compute(self, lane: int, action: Action) -> bool:
        gang = self.gang(lane, action)
        if any((other, action) not in self.reached for other in gang):
            return False
        duration = max(self.costs.duration_ns(action, lane=other) for other in gang)
        for other in gang:
            self.spans[other, action] = (self.now, self.now + duration)
            self.busy_until[other] = self.now + duration
            self.position[other] += 1
        return True

    def gang(self, lane: int, action: Action) -> tuple[int, ...]:
        part = next(action.flat())
        module = self.program.topology.module(part.module)
        if action.kind.is_collective:
            return module.lanes(part.stage)
        return next(gang for gang in module.stages[part.stage] if lane in gang)

    def send(self, lane: int, action: Action) -> tuple[bool, bool]:
        changed = False
        is_done = True
        for peer in peers(self.program, lane, action):
            key = (lane, peer, action)
            if key not in self.messages:
                self.messages[key] = Message(action, lane, peer, self.duration(lane, peer, action))
            message = self.messages[key]
            if message.posted is None and self.may_post(message):
                changed = True
                message.posted = self.now
                if message.duration:
                    self.queue[lane].append(message)
                else:
                    message.start = message.end = self.now
            is_done &= message.posted is not None
        return changed, is_done

    def may_post(self, message: Message) -> bool:
        there = other_end(self.program, message.send)
        if self.rendezvous:
            return self.is_exempt(message) or (message.destination, there) in self.reached
        name, direction = message.send.module, "F" if message.send.kind is Kind.SEND_F else "B"
        slots = self.slots if self.slots is None or isinstance(self.slots, int) else self.slots.get((name, direction))
        if slots is None:
            return True
        used = [
            m
            for m in self.messages.values()
            if (m.source, m.destination) == (message.source, message.destination)
            and (m.send.module, m.send.stage, m.send.kind) == (name, message.send.stage, message.send.kind)
            and self.is_in_slot(m)
        ]
        return len(used) < slots

    def is_exempt(self, message: Message) -> bool:
        return message.source == message.destination

    def is_in_slot(self, message: Message) -> bool:
        return (
            message.posted is not None and (message.destination, other_end(self.program, message.send)) not in self.done
        )

    def duration(self, lane: int, peer: int, action: Action) -> int:
        link = self.costs.links.get(action.module, self.costs.links.get("default", Link()))
        size = self.costs.message_bytes.find(
            action.kind, action.module, action.stage, microbatch=action.first, lane=lane
        )
        return 0 if lane == peer else link.time_ns(size or 0)

    def receive(self, lane: int, action: Action) -> bool:
        there = other_end(self.program, action)
        messages = [self.messages.get((peer, lane, there)) for peer in peers(self.program, lane, action)]
        return all(m is not None and m.end is not None and m.end <= self.now for m in messages)

    def start_transfers(self) -> None:
        """Each free receive engine takes, of the first messages in the queues of free senders, the one posted first."""
        moving = [m for m in self.messages.values() if m.end is not None and m.end > self.now]
        sending, receiving = {m.source for m in moving}, {m.destination for m in moving}
        for source, queue in self.queue.items():
            self.queue[source] = [m for m in queue if m.start is None]
        heads = [queue[0] for source, queue in self.queue.items() if queue and source not in sending]
        for message in sorted(heads, key=self.precedence):
            if message.destination not in receiving:
                receiving.add(message.destination)
                message.start, message.end = self.now, self.now + message.duration

    def precedence(self, message: Message) -> tuple[int, int]:
        assert message.posted is not None
        return message.posted, message.source
