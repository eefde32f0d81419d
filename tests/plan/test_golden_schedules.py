"""Where no formula holds, the simulator's figures are kept."""

from __future__ import annotations

import json

from tests.plan.golden_schedules import FILE, figures


def test_the_figures_are_those_of_the_golden_file() -> None:
    assert figures() == json.loads(FILE.read_text())


def test_no_makespan_is_below_its_lower_bound() -> None:
    assert all(case["makespan"] >= case["lower_bound"] for case in json.loads(FILE.read_text()).values())
