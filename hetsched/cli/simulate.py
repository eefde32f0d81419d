"""``hetsched simulate``: what a schedule would take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hetsched.cli.costs import ENCODER, add_cost_arguments, read_costs, require_costs, require_known_actions
from hetsched.cli.encoder_flags import add_encoder_arguments, encoded_program, num_items, require_no_encoder_flags
from hetsched.cli.output import print_json, write
from hetsched.cli.schedule_flags import MODULE, add_schedule_arguments, scheduled_program
from hetsched.plan.words import counted
from hetsched.schedule.serialize import program_to_json
from hetsched.sim.bubble import share_of_lanes, total_bubble
from hetsched.sim.encoder import encoder_in_flight
from hetsched.sim.live import peak_live_microbatches
from hetsched.sim.simulate import simulate, simulated_makespan_ns
from hetsched.sim.timeline import Timeline

HELP = "time a schedule: makespan, bubble by cause, live microbatches"
EXAMPLES = (
    "hetsched simulate --schedule 1f1b --stages 4 --microbatches 8 --cost F=1,B=2",
    "hetsched simulate --schedule 1f1b --stages 4 --microbatches 8 --cost F=1,B=2,EF=0.5,EB=1 --encoder fill",
    "hetsched simulate --schedule zb-v --stages 8 --microbatches 16 --cost F=1,I=1,W=1 --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add_schedule_arguments(parser, required=True)
    add_cost_arguments(parser)
    add_encoder_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("-o", "--out", type=Path, metavar="PROGRAM", help="write the program that was timed (JSON)")


def run(args: argparse.Namespace) -> int:
    """Simulate and print the figures."""
    alone, given = scheduled_program(args), read_costs(args, num_items=num_items(args))
    require_costs(alone, given)
    encoded = None
    if args.encoder is None:
        require_no_encoder_flags(args)
        require_known_actions(alone, given)
        timeline = simulate(alone, given.costs)
    else:
        encoded = encoded_program(args, given)
        require_known_actions(encoded.program, given)
        require_costs(encoded.program, replace(given, costs=encoded.costs))
        timeline = simulate(encoded.program, encoded.costs)
    if args.out is not None:
        write(json.dumps(program_to_json(timeline.program)) + "\n", args.out)
    # As data in the unit of the costs, as text in one that is easy to read.
    time = given.unit.of if args.json else given.unit_of_text(timeline.makespan_ns).text
    figures = {"schedule": args.schedule} | _figures(timeline, time)
    if encoded is not None:
        recomputed = encoded.placement.recomputed.get(ENCODER, frozenset())
        figures |= {
            "encoder": args.encoder,
            "encoder_in_flight": encoder_in_flight(timeline, ENCODER, recomputed=recomputed),
            "encoder_recomputed": len(recomputed),
            "encoder_exposed": time(timeline.makespan_ns - simulated_makespan_ns(alone, given.costs)),
        }
    if args.json:
        print_json(figures)
    else:
        print(_text(figures, bound_without=" (without --in-flight)" if args.in_flight else ""))
    return 0


def _figures(timeline: Timeline, time: Callable[[int], Any]) -> dict[str, Any]:
    """What is said of a timeline, with ``time`` for nanoseconds."""
    program, bubble = timeline.program, total_bubble(timeline)
    assert timeline.lower_bound_ns is not None
    module = program.topology.module(MODULE)
    return {
        "stages": module.num_stages,
        "lanes": len(program.lanes),
        "microbatches": program.num_microbatches,
        "makespan": time(timeline.makespan_ns),
        "lower_bound": time(timeline.lower_bound_ns),
        # Where nothing costs anything, nothing is lost.
        "gap": timeline.gap or 0.0,
        "bubble": {
            "total": time(bubble.total),
            "fraction": share_of_lanes(timeline, bubble),
            **{cause: time(of_cause) for cause, of_cause in bubble.by_cause().items()},
        },
        "peak_live_microbatches": list(peak_live_microbatches(program)),
    }


def _text(figures: dict[str, Any], *, bound_without: str) -> str:
    bubble = figures["bubble"]
    causes = ", ".join(f"{name} {bubble[name]}" for name in bubble if name not in ("total", "fraction"))
    live = " ".join(map(str, figures["peak_live_microbatches"]))
    # A lane of several stages holds a microbatch once for each.
    held = "microbatches" if figures["stages"] == figures["lanes"] else "(stage, microbatch) pairs"
    encoder = ""
    if "encoder" in figures:
        encoder = (
            f"\nencoder      {figures['encoder']}: {figures['encoder_exposed']} exposed, "
            f"{counted(figures['encoder_in_flight'], 'microbatch')} in flight at most"
            + (f", {figures['encoder_recomputed']} recomputed" if figures["encoder_recomputed"] else "")
        )
    return (
        f"{figures['schedule']}: {counted(figures['stages'], 'stage')} on {counted(figures['lanes'], 'lane')}, "
        f"{counted(figures['microbatches'], 'microbatch')}, simulated\n"
        f"makespan     {figures['makespan']}\n"
        f"lower bound  {figures['lower_bound']}, gap {figures['gap']:.1%}{bound_without}\n"
        f"bubble       {bubble['total']}, {bubble['fraction']:.1%} of lane time: {causes}\n"
        f"live         {live}: most {held} held at once, by lane{encoder}"
    )
