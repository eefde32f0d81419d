"""The HTML page: complete by itself, true to the timeline, written in time."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hetsched.cli import main
from hetsched.show.compare import compare
from hetsched.show.html import to_html
from hetsched.show.layer import Layer
from hetsched.sim.critical import critical_path
from hetsched.sim.timeline import Stream
from tests.show.idle import idle_seconds
from tests.show.steps import MS, colocated_step, later_from


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    found: dict[str, Any] = json.loads(text)
    return found


class Links(HTMLParser):
    """Whatever a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "data")]
        self.found += [tag] if tag in ("link", "iframe", "object", "embed", "base") else []


def test_the_page_fetches_nothing() -> None:
    page = to_html([Layer("step", colocated_step())], title="t")
    assert Links(page).found == []
    assert not re.search(r"https?:|url\(|@import|import\(|fetch\(|XMLHttpRequest|WebSocket", page)


def test_no_mark_is_left_and_a_title_cannot_break_the_page() -> None:
    page = to_html([Layer("</script><b>", colocated_step())], title="<b> & </script>")
    assert "{{" not in page.replace("${{", "")
    assert page.count("</script>") == 2 and "<h1>&lt;b&gt; &amp; &lt;/script&gt;</h1>" in page


def test_the_data_are_the_timeline() -> None:
    timeline = colocated_step()
    (layer,) = data_of(to_html([Layer("step", timeline)], title="t"))["layers"]
    names, times, found = layer["names"].split(" "), layer["times"], []
    number = 0
    for lane, count in enumerate(layer["lanes"]):
        end = 0
        for _ in range(count):
            start = end + times[2 * number]
            end = start + times[2 * number + 1]
            found.append((lane, start, end, names[number]))
            number += 1
    computed = [s for s in timeline.spans if s.stream is Stream.COMPUTE]
    assert found == [(s.lane, s.start_ns, s.end_ns, str(s.action)) for s in computed]
    received = sorted((s.peer, s.lane, s.start_ns, s.duration_ns) for s in timeline.spans if s.stream is Stream.RECEIVE)
    assert sorted((a, b, start, took) for a, b, start, took, _ in groups(layer["messages"], 5)) == received
    path = critical_path(timeline)
    assert len(layer["critical"]) == len(path)
    assert [names[n] for n in layer["critical"] if n >= 0] == [
        str(s.action) for s in path if s.stream is Stream.COMPUTE
    ]
    assert [sum(lane) for lane in layer["bubbles"]] == [
        timeline.makespan_ns - sum(s.duration_ns for s in computed if s.lane == lane) for lane in range(4)
    ]


def groups(flat: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def test_a_comparison_is_on_the_page() -> None:
    timeline = colocated_step()
    late = later_from(timeline, "llm:1F1", 30 * MS)
    layers = [Layer("predicted", timeline), Layer("measured", late)]
    data = data_of(to_html(layers, title="t", comparison=compare(timeline, late)))
    assert [layer["name"] for layer in data["layers"]] == ["predicted", "measured"]
    assert data["comparison"]["divergence"]["lane"] == 1
    assert ["llm F", 16, 10 * MS, 11.875 * MS, "+18.8%", 1.875 * MS] in data["comparison"]["errors"]


@pytest.mark.alone
def test_64_lanes_of_256_microbatches_are_written_within_2_s(tmp_path: Path) -> None:
    timeline = colocated_step(64, 256, encoder="stage0")
    path = tmp_path / "step.html"
    seconds, _ = idle_seconds(lambda: path.write_text(to_html([Layer("step", timeline)], title="64 x 256")))
    assert seconds < 2
    assert path.stat().st_size < 6_000_000


def test_show_writes_every_format(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    words = ["show", "--schedule", "1f1b", "--stages", "3", "--microbatches", "4", "--cost", "F=1,B=2"]
    assert main([*words, "--json", "-o", str(trace)]) == 0
    opening = {"svg": "<svg ", "html": "<!doctype html>", "perfetto": '{"traceEvents": [', "text": "predicted"}
    for name, text in opening.items():
        out = tmp_path / name
        assert main([*words, "--measured", str(trace), "--format", name, "-o", str(out)]) == 0
        assert out.read_text().startswith(text)
    assert "no action diverges" in (tmp_path / "text").read_text()
