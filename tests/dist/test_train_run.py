"""``hetsched train`` leaves a line for each step and each evaluation."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hetsched.plan import parse_plan
from hetsched.runtime.report import StepReport
from hetsched.sim.timeline import Timeline
from hetsched.train.run import RunFiles, _logger, _train_rank
from tests.dist.pool import Pool, RanksFailed

PLAN = parse_plan("""
name = "lines"
world_size = 2
microbatches = 2
modules = { vision = { first_rank = 0, layout.dp = 2 }, llm = { first_rank = 0, layout.pp = 2 } }
boundaries = [{ producer = "vision", consumer = "llm" }]
data = { batch_size = 4, num_heldout = 64 }
training = { steps = 5 }

[model]
vision = { kind = "vision", layers = 1, hidden = 8, heads = 1, ffn = 8, patch = 4, merge = 2 }
llm = { kind = "decoder", layers = 2, hidden = 8, heads = 1, kv_heads = 1, ffn = 8, vocab = 25 }
""")


@pytest.mark.parametrize(
    ("evaluate_every", "stop_after", "lines"),
    [
        (0, None, ["step 0", "step 1", "step 2", "step 3", "step 4", "evaluation 5"]),
        (2, None, ["step 0", "step 1", "evaluation 2", "step 2", "step 3", "evaluation 4", "step 4", "evaluation 5"]),
        (2, 2, ["step 0", "step 1", "evaluation 2"]),
    ],
)
def test_metrics_have_a_line_for_each_step_and_evaluation(
    ranks: Pool, tmp_path: Path, evaluate_every: int, stop_after: int | None, lines: list[str]
) -> None:
    assert PLAN.training is not None
    plan = replace(PLAN, training=replace(PLAN.training, evaluate_every=evaluate_every))
    files = RunFiles(*(tmp_path / name for name in ("metrics.jsonl", "trace.json", "overlap.json")))
    ranks.run(_train_rank, plan, stop_after, files, False, num_ranks=2)
    timeline = Timeline.from_json(json.loads((tmp_path / "trace.json").read_text()))
    assert len(timeline.program.lanes) == 2 and timeline.makespan_ns > 0
    overlaps = {of["name"]: of for of in json.loads((tmp_path / "overlap.json").read_text())}
    ways = ("forward", "backward")
    assert set(overlaps) == {f"{edge}, {way}" for edge in ("vision->llm", "llm stages 0 and 1") for way in ways}
    assert all(0 <= of["hidden"] <= 1 and of["num_messages"] > 0 for of in overlaps.values())
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [f"{'evaluation' if 'heldout_loss' in line else 'step'} {line['step']}" for line in found] == lines
    for line in found:
        assert math.isfinite(line.get("loss", line.get("heldout_loss")))
        if "heldout_loss" in line:
            assert 0 <= line["exact_match_pixels"] <= 1 and set(line["exact_match"]) >= {"read", "number", "larger"}
        else:
            assert line["step_s"] > 0 and line["sent_bytes"] > 0 and 0 <= line["bubble"] <= 1


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_told_on_a_terminal_and_to_a_pipe(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    log = _logger(PLAN, 40, io.StringIO())
    report = StepReport(**{field.name: 0 for field in fields(StepReport)})
    for step in range(40):
        log(step, report, 1.0)
    err = capsys.readouterr().err
    assert err.endswith("lines: step 40/40  loss 0.0000  0 s left\n")
    told = [re.split("[ /]", line)[2] for line in re.split("\r\x1b\\[K|\n", err) if line]
    some = ["1", *map(str, range(4, 41, 4))]
    assert told == (list(map(str, range(1, 41))) if is_terminal else some)


def test_too_few_held_out_samples_to_swap_are_refused_before_any_step(ranks: Pool, tmp_path: Path) -> None:
    assert PLAN.data is not None
    plan = replace(PLAN, data=replace(PLAN.data, num_heldout=1))
    with pytest.raises(RanksFailed) as failed:
        ranks.run(_train_rank, plan, None, RunFiles(tmp_path / "metrics.jsonl"), False, num_ranks=2)
    assert {kind for kind, _ in failed.value.failures.values()} == {"DataError"}
    assert "sample 0: no other sample has an image to swap; swap more samples at once" in str(failed.value)
    assert not (tmp_path / "metrics.jsonl").exists()
