"""What the simulator says where the papers' formulas do not hold.

`python -m tests.plan.golden_schedules` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hetsched.sim.costs import Costs
from hetsched.sim.live import peak_live_microbatches
from hetsched.sim.simulate import simulate
from tests.plan.pipelines import lowered, unlowered

FILE = Path(__file__).parent.parent / "golden" / "schedules.json"

EQUAL = {"F": 2, "I": 2, "W": 2}
LARGE_W = {"F": 2, "I": 3, "W": 4}
SMALL_W = {"F": 4, "I": 5, "W": 1}


def cases() -> Iterator[tuple[str, int, int, dict[str, int]]]:
    """Schedule, lanes, microbatches and costs outside the validity that hetsched/schedule/*.py states."""
    for lanes in (2, 4, 7, 16):
        for microbatches in (1, lanes - 1, lanes + 1, 2 * lanes + 3, 64):
            if microbatches % lanes:
                yield "interleaved", lanes, microbatches, {"F": 3, "B": 5}
        for microbatches in (1, lanes, 2 * lanes, 64):
            yield "zb-h1", lanes, microbatches, LARGE_W
            yield "zb-v", lanes, microbatches, LARGE_W
            yield "zb-v", lanes, microbatches, SMALL_W
            yield "dualpipev", lanes, microbatches, LARGE_W
            yield "dualpipev", lanes, microbatches, SMALL_W
        yield "zb-v", lanes, 2 * lanes - 2, EQUAL
        yield "dualpipev", lanes, 2 * lanes - 1, EQUAL


def figures() -> dict[str, dict[str, Any]]:
    """Makespan, lower bound and most live activations of each case."""
    result = {}
    for schedule, lanes, microbatches, costs in cases():
        program = unlowered(schedule, lanes, microbatches)
        timeline = simulate(lowered(program), Costs.constant(**costs))
        name = f"{schedule} P={lanes} M={microbatches} " + " ".join(f"{kind}={cost}" for kind, cost in costs.items())
        result[name] = {
            "makespan": timeline.makespan_ns,
            "lower_bound": timeline.lower_bound_ns,
            "live": list(peak_live_microbatches(program)),
        }
    return result


if __name__ == "__main__":
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in figures().items())
    FILE.write_text(f"{{\n{rows}\n}}\n")
