"""How well ``fill`` fills 1F1B's bubbles, and in what time, on one core with the default budget.

    python benchmarks/placement.py --sizes 16x64 64x256

Costs are F=1, B=2, EB=2 EF, all simulated; the bound is that of the encoder on all lanes: the work of a lane,
or the LLM alone and one microbatch's encoder outside of it, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass

from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.action import Action, Kind
from hetsched.schedule.encoder import EncoderLoads, ItemCost, Placement, PlacementOptions, place_encoders
from hetsched.schedule.registry import sink_lanes
from hetsched.schedule.table import ActionTable, Pattern
from hetsched.sim.costs import Costs
from hetsched.sim.simulate import simulate

UNIT = 1 << 20
DURATIONS = {Kind.F: UNIT, Kind.B: 2 * UNIT}
NUM_ITEMS = 16


@dataclass(frozen=True)
class Row:
    """One case; times of the program are in units of F, those of the search in milliseconds."""

    lanes: int
    microbatches: int
    encoder_forward: float
    is_split: bool
    makespan: float | None
    bound: float
    gap_percent: float | None
    evaluations: int
    milliseconds: float


def step(num_lanes: int, num_microbatches: int) -> tuple[Topology, list[list[Action]]]:
    """1F1B with an encoder on all of its lanes."""
    llm = ModuleOnLanes("llm", tuple(((lane,),) for lane in range(num_lanes)))
    vision = ModuleOnLanes("vision", (tuple((lane,) for lane in range(num_lanes)),), takes_items=True)
    topology = Topology(num_lanes, (vision, llm), (Edge("vision", "llm"),))
    lanes = sink_lanes(topology, sink="llm", pipeline="1f1b", num_microbatches=num_microbatches)
    return topology, [list(lane) for lane in lanes]


def simulated(placement: Placement) -> float:
    """The makespan of the lowered and checked program."""
    table = {**{Pattern(kind, "llm"): duration for kind, duration in DURATIONS.items()}, **placement.durations_ns}
    return simulate(lower_transfers(placement.program), Costs(ActionTable(table))).makespan_ns / UNIT


def measure(size: tuple[int, int], encoder_forward: float, *, is_split: bool, repeats: int, is_timed: bool) -> Row:
    """The best of some repeats, which all find the same."""
    num_lanes, num_microbatches = size
    topology, lanes = step(num_lanes, num_microbatches)
    num_items = NUM_ITEMS if is_split else 1
    forward = int(encoder_forward * UNIT / num_items)
    items = [[ItemCost(forward, 2 * forward)] * num_items for _ in range(num_microbatches)]
    loads = EncoderLoads(lambda action, lane: DURATIONS[action.kind], {"vision": items})
    options = PlacementOptions(split_items=is_split)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        placement = place_encoders(
            topology, lanes, num_microbatches=num_microbatches, policy="fill", loads=loads, options=options
        )
        best = min(best, time.perf_counter() - start)
    outside = 3 * encoder_forward / (num_lanes if is_split else 1)
    work = num_microbatches * (3 + 3 * encoder_forward / num_lanes)
    bound = max(work, (num_microbatches + num_lanes - 1) * 3 + outside)
    makespan = simulated(placement) if is_timed else None
    gap = None if makespan is None else round(100 * (makespan / bound - 1), 3)
    return Row(
        *(num_lanes, num_microbatches, encoder_forward, is_split, makespan, bound, gap),
        placement.num_evaluations,
        round(1e3 * best, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["4x8", "4x16", "16x64", "64x256"], metavar="LANESxMICROBATCHES")
    parser.add_argument("--encoder-forward", nargs="+", type=float, default=[0.5, 1.0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--untimed", action="store_true", help="do not simulate what was placed: large sizes take long")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for size in args.sizes:
        lanes, _, microbatches = size.partition("x")
        for forward in args.encoder_forward:
            for is_split in (False, True):
                row = measure(
                    *((int(lanes), int(microbatches)), forward),
                    is_split=is_split,
                    repeats=args.repeats,
                    is_timed=not args.untimed,
                )
                if args.json:
                    print(json.dumps(asdict(row) | {"machine": platform.machine()}), flush=True)
                else:
                    print("  ".join(f"{name}={value}" for name, value in asdict(row).items()), flush=True)


if __name__ == "__main__":
    main()
