"""The main job, as `make demo` runs it: one model on real images, its encoder placed in three ways.

Trains colocated (the encoder with a layout of its own on the LLM's ranks), then the first steps of homogeneous (the
encoder on the LLM's first stage) and non-colocated (ranks of its own) from the same seed, and compares them.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from hetsched.plan import Plan, load_plan
from hetsched.train.run import train_plan

PLANS = Path(__file__).parent / "digits"
COLOCATED_STEPS = 600
COMPARED_STEPS = 50


def main() -> None:
    """Run the three jobs and print what they did."""
    began = time.monotonic()
    runs = {}
    for name in ("colocated", "homogeneous", "non_colocated"):
        plan = demo_plan(PLANS / f"{name}.toml")
        steps = COLOCATED_STEPS if name == "colocated" else COMPARED_STEPS
        print(f"{name}: {plan.world_size} processes, {steps} steps ...", file=sys.stderr, flush=True)
        runs[name] = read_metrics(train_plan(plan, stop_after=steps, out=Path("runs", "demo", name)))
    print(table(runs))
    print(f"\nlargest difference of the losses over {COMPARED_STEPS} steps: {largest_difference(runs):.1e} relative")
    print(f"all in {time.monotonic() - began:.0f} s; metrics are in runs/demo/*/metrics.jsonl")


def demo_plan(path: Path) -> Plan:
    """The plan of a file with the length of the demo."""
    plan = load_plan(path)
    assert plan.training is not None
    return dataclasses.replace(plan, training=dataclasses.replace(plan.training, steps=COLOCATED_STEPS))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: the steps, then the evaluation."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One column a placement."""
    kinds = list(next(iter(runs.values()))[-1]["exact_match"])
    rows: list[list[str]] = [["", *runs]]
    rows.append(["steps", *(str(len(run) - 1) for run in runs.values())])
    rows.append(
        [f"loss at step {COMPARED_STEPS}", *(f"{run[COMPARED_STEPS - 1]['loss']:.4f}" for run in runs.values())]
    )
    rows.append(["last loss", *(f"{run[-2]['loss']:.4f}" for run in runs.values())])
    for kind in kinds:
        rows.append(
            [f"held-out exact match: {kind}", *(f"{run[-1]['exact_match'][kind]:.0%}" for run in runs.values())]
        )
    rows.append(["  that need pixels, together", *(f"{run[-1]['exact_match_pixels']:.0%}" for run in runs.values())])
    rows.append(["  with images swapped", *(f"{run[-1]['exact_match_pixels_swapped']:.0%}" for run in runs.values())])
    rows.append(["step time, median", *(f"{1e3 * median(run, 'step_s'):.0f} ms" for run in runs.values())])
    rows.append(["of it waiting, or contending for cores", *(f"{median(run, 'bubble'):.0%}" for run in runs.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def median(run: list[dict[str, Any]], key: str) -> float:
    """Median of a figure over the steps."""
    return statistics.median(line[key] for line in run[:-1])


def largest_difference(runs: dict[str, list[dict[str, Any]]]) -> float:
    """Between any placement's losses and the colocated one's, relative."""
    base = runs["colocated"]
    return max(
        abs(run[step]["loss"] / base[step]["loss"] - 1) for run in runs.values() for step in range(COMPARED_STEPS)
    )


if __name__ == "__main__":
    main()
