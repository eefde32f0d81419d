"""How fast programs are checked and simulated on one core; prints JSON, a line per case.

Times are of the processor, not of the clock on the wall, so that they hold on a machine that does other things too. All
programs are 1F1B with their transfers; the figures of the last case include contention for the receive engines.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable

import numpy as np

from hetsched.check.validate import check, slot_table, validate
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.lower.transfers import lower_transfers
from hetsched.schedule.one_f_one_b import one_f_one_b
from hetsched.schedule.program import Program
from hetsched.sim.costs import Costs, Link, duration_array, message_times
from hetsched.sim.simulate import simulate

SIZES = ((8, 64), (64, 256), (256, 1024))
MIN_REPEATS, MAX_REPEATS, MAX_SECONDS = 5, 200, 2.0


def pipeline(num_lanes: int, num_microbatches: int, *, has_encoder: bool) -> Program:
    """1F1B, with or without an encoder on all lanes that sends to the first and gets its gradient back."""
    modules = [ModuleOnLanes("llm", tuple(((lane,),) for lane in range(num_lanes)))]
    lanes = list(one_f_one_b(num_lanes, num_microbatches))
    if not has_encoder:
        return lower_transfers(Program(Topology(num_lanes, tuple(modules)), num_microbatches, tuple(lanes)))
    encoder = one_f_one_b(1, num_microbatches, module="vision")[0]
    gangs = tuple((lane,) for lane in range(num_lanes))
    modules.append(ModuleOnLanes("vision", (gangs,), takes_items=True))
    topology = Topology(num_lanes, tuple(modules), (Edge("vision", "llm"),))
    lanes = [(*encoder[::2], *lane, *encoder[1::2]) for lane in lanes]
    return lower_transfers(Program(topology, num_microbatches, tuple(lanes)))


def seconds(work: Callable[[], object]) -> dict[str, float]:
    """Median, 20th and 80th percentile of the processor time, after one run to warm up."""
    work()
    times: list[float] = []
    while len(times) < MIN_REPEATS or (len(times) < MAX_REPEATS and sum(times) < MAX_SECONDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    p20, median, p80 = np.percentile(times, (20, 50, 80))
    return {"median_ms": median * 1e3, "p20_ms": p20 * 1e3, "p80_ms": p80 * 1e3}


def cases(num_lanes: int, num_microbatches: int) -> dict[str, tuple[Program, Callable[[], object]]]:
    """What is timed: the engine alone on a compiled program, and the calls around it."""
    program = pipeline(num_lanes, num_microbatches, has_encoder=False)
    flat = check(program)
    free = Costs.constant(F=1000, B=2000)
    linked = Costs(free.durations_ns, links={"default": Link(latency_ns=100)})
    slots = slot_table(flat, None)

    def engine(costs: Costs) -> Callable[[], object]:
        durations, messages = duration_array(flat, costs), message_times(program, costs)
        return lambda: flat.compiled.run(durations, messages, slots, False)

    result: dict[str, tuple[Program, Callable[[], object]]] = {
        "engine, free transfers": (program, engine(free)),
        "engine, transfers take time": (program, engine(linked)),
        "validate": (program, lambda: validate(program)),
        "simulate": (program, lambda: simulate(program, linked)),
    }
    return result


def main() -> None:
    for size in SIZES:
        for case, (program, work) in cases(*size).items():
            num_actions = sum(map(len, program.lanes))
            times = seconds(work)
            rate = num_actions / times["median_ms"] * 1e3
            row = {"case": case, "lanes": size[0], "microbatches": size[1], "actions": num_actions}
            row |= {key: round(value, 3) for key, value in times.items()} | {"actions_per_s": round(rate)}
            print(json.dumps(row | {"machine": platform.processor() or platform.machine()}), flush=True)


if __name__ == "__main__":
    main()
