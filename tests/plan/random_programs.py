"""Random sound programs and costs for hypothesis: layouts, encoders, gangs, V shapes, any order that works."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.params import lower_gradient_reduction
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Action, Kind, act
from hetsched.schedule.program import Program
from hetsched.schedule.table import ActionTable, Pattern
from hetsched.sim.costs import Costs, Link

Draw = st.DrawFn


Gang = tuple[int, ...]
Chain = tuple[ModuleOnLanes, int, Gang, Kind]


@dataclass
class Builder:
    """Appends actions that are ready, until all are done."""

    topology: Topology
    num_microbatches: int
    absent: frozenset[tuple[Gang, int]] = frozenset()
    """Gangs of the encoder without items of a microbatch."""
    lanes: list[list[Action]] = field(init=False)
    done: set[tuple[str, int, Gang, Kind, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lanes = [[] for _ in range(self.topology.num_lanes)]

    def work_of(self, chain: Chain) -> list[int]:
        """The microbatches that a chain runs."""
        module, _, gang, _ = chain
        return [m for m in range(self.num_microbatches) if not (module.takes_items and (gang, m) in self.absent)]

    def append(self, chain: Chain, m: int) -> None:
        module, stage, gang, kind = chain
        for lane in gang:
            self.lanes[lane].append(act(module.name, stage, kind, m))
        self.done.add((module.name, stage, gang, kind, m))

    def is_done(self, module: ModuleOnLanes, stage: int, m: int, *kinds: Kind) -> bool:
        """Whether every gang of the stage that runs the microbatch has done one of the kinds."""
        return all(
            any((module.name, stage, gang, kind, m) in self.done for kind in kinds)
            for gang in module.stages[stage]
            if m in self.work_of((module, stage, gang, kinds[0]))
        )

    def is_ready(self, chain: Chain, m: int) -> bool:
        module, stage, gang, kind = chain
        if kind is Kind.W:
            return (module.name, stage, gang, Kind.I, m) in self.done
        if kind is Kind.F:
            into = [self.topology.module(e.producer) for e in self._edges(module, stage, is_into=True)]
            before = stage == 0 or self.is_done(module, stage - 1, m, Kind.F)
            return before and all(self.is_done(p, p.num_stages - 1, m, Kind.F) for p in into)
        behind = [(self.topology.module(e.consumer), e.stage) for e in self._edges(module, stage, is_into=False)]
        behind += [(module, stage + 1)] if stage + 1 < module.num_stages else []
        is_forward_done = (module.name, stage, gang, Kind.F, m) in self.done
        return is_forward_done and all(self.is_done(other, at, m, Kind.B, Kind.I) for other, at in behind)

    def _edges(self, module: ModuleOnLanes, stage: int, *, is_into: bool) -> list[Edge]:
        if is_into:
            return [e for e in self.topology.edges if (e.consumer, e.stage) == (module.name, stage)]
        return [e for e in self.topology.edges if e.producer == module.name and stage == module.num_stages - 1]


@st.composite
def work(draw: Draw) -> tuple[Builder, list[Chain]]:
    """Up to four lanes with an LLM and perhaps an encoder, and the chains of actions that they have to do."""
    num_lanes = draw(st.integers(1, 4))
    lane = st.integers(0, num_lanes - 1)
    stages = draw(st.lists(lane, min_size=1, max_size=5))
    modules = [ModuleOnLanes("llm", tuple(((at,),) for at in stages))]
    edges: tuple[Edge, ...] = ()
    if draw(st.booleans()):
        some = sorted(draw(st.sets(lane, min_size=1)))
        shapes: dict[str, tuple[tuple[Gang, ...], ...]] = {
            "replicas": (tuple((at,) for at in some),),
            "one gang": ((tuple(some),),),
            "two stages": (((draw(lane),),), ((draw(lane),),)),
        }
        shape = shapes[draw(st.sampled_from(sorted(shapes)))]
        modules.append(ModuleOnLanes("vision", shape, has_backward=draw(st.booleans()), takes_items=True))
        edges = (Edge("vision", "llm", draw(st.integers(0, len(stages) - 1))),)
    num_microbatches = draw(st.integers(1, 4))
    # An encoder of two stages is absent from both or from none.
    gangs = modules[-1].stages[0] if len(modules[-1].stages) == 1 else ()
    absent = frozenset((g, m) for g in gangs for m in range(num_microbatches) if draw(st.integers(0, 3)) == 0)
    builder = Builder(Topology(num_lanes, tuple(modules), edges), num_microbatches, absent)
    chains: list[Chain] = []
    for module in modules:
        for stage, at in enumerate(module.stages):
            backward = [Kind.I, Kind.W] if draw(st.booleans()) else [Kind.B]
            kinds = [Kind.F, *backward] if module.has_backward else [Kind.F]
            chains += [(module, stage, gang, kind) for gang in at for kind in kinds]
    return builder, chains


def ordered(draw: Draw, builder: Builder, chains: list[Chain]) -> Program:
    """The work in a random order; each chain takes its microbatches in turn."""
    builder = Builder(builder.topology, builder.num_microbatches, builder.absent)
    left = {number: builder.work_of(chain) for number, chain in enumerate(chains)}
    while left := {number: todo for number, todo in left.items() if todo}:
        number = draw(st.sampled_from([n for n, todo in left.items() if builder.is_ready(chains[n], todo[0])]))
        builder.append(chains[number], left[number].pop(0))
    program = Program(builder.topology, builder.num_microbatches, tuple(map(tuple, builder.lanes)))
    trained = frozenset(module.name for module in builder.topology.modules if module.has_backward)
    return lower_gradient_reduction(lower_transfers(program), trained=trained)


@st.composite
def programs(draw: Draw) -> Program:
    """A lowered, sound program."""
    return ordered(draw, *draw(work()))


@st.composite
def program_pairs(draw: Draw) -> tuple[Program, Program]:
    """Two lowered programs of the same work."""
    builder, chains = draw(work())
    return ordered(draw, builder, chains), ordered(draw, builder, chains)


@st.composite
def costs(draw: Draw) -> Costs:
    """Small costs of any kind, so that times often tie."""
    time = st.integers(0, 4)
    durations = {Pattern(kind): draw(time) for kind in (Kind.F, Kind.B, Kind.I, Kind.W, Kind.REDUCE_GRAD)}
    if draw(st.booleans()):
        durations[Pattern(Kind.F, "llm", 0)] = draw(time)
        durations[Pattern(Kind.F, "vision", None, draw(st.integers(0, 3)), draw(st.integers(0, 3)))] = draw(time)
    sizes = {Pattern(kind): draw(time) for kind in (Kind.SEND_F, Kind.SEND_B)}
    names = ["default", "llm", "vision->llm"]
    rates = st.sampled_from([None, 1_000_000_000, 500_000_000])
    links = {name: Link(draw(time), draw(rates)) for name in draw(st.sets(st.sampled_from(names)))}
    return Costs(ActionTable(durations), ActionTable(sizes), links=links)
