"""A measured step has the form of a simulated one."""

from __future__ import annotations

import json
from itertools import pairwise

from hetsched.batch import Batch
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.show.text import draw
from hetsched.sim.costs import Costs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Stream, Timeline
from hetsched.stepprogram import step_program
from tests.dist.plans import make_plan
from tests.dist.pool import Pool
from tests.dist.ragged import RaggedSource
from tests.dist.test_parity import layout


def trace_a_step(plan: Plan) -> str:
    engine = Engine(plan, builders(plan))
    engine.step(Batch.of(RaggedSource(plan.seed), range(17)))
    return json.dumps(engine.timeline().to_json())


def test_the_measured_timeline_has_the_actions_and_the_form_of_the_predicted_one(ranks: Pool) -> None:
    plan = make_plan(vision=layout(dp=4), llm=layout(dp=2, pp=2), world_size=4)
    texts = ranks.run(trace_a_step, plan, num_ranks=4)
    assert len(set(texts)) == 1, "all ranks see the same timeline"
    measured = Timeline.from_json(json.loads(texts[0]))
    predicted = simulate(step_program(plan), Costs.constant(F=1000, B=2000, REDUCE_GRAD=100))
    for lane in range(2):
        ran, planned = measured.stream(lane, Stream.COMPUTE), predicted.stream(lane, Stream.COMPUTE)
        assert [span.action for span in ran] == [span.action for span in planned]
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(ran)), "one thing at a time"
    assert measured.makespan_ns > 0
    # Measured boxes may be narrow, of which a line of its own tells.
    forms = [
        [line.split()[0] for line in draw(of).splitlines() if "too narrow" not in line] for of in (measured, predicted)
    ]
    assert forms[0] == forms[1] == ["time", "lane", "lane", "step", "key:"]


def test_a_stage_starts_after_the_one_before_it_has_ended(ranks: Pool) -> None:
    plan = make_plan(vision=layout(), llm=layout(pp=2), world_size=2)
    measured = Timeline.from_json(json.loads(ranks.run(trace_a_step, plan, num_ranks=2)[0]))
    ends = {str(s.action): s.end_ns for s in measured.stream(0, Stream.COMPUTE)}
    starts = {str(s.action): s.start_ns for s in measured.stream(1, Stream.COMPUTE)}
    for m in range(4):
        assert starts[f"llm:1F{m}"] >= ends[f"llm:0F{m}"]
