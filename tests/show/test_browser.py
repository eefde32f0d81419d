"""The page in a real browser: it draws what it is given, and zoom, pan and hover do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hetsched.show.compare import compare
from hetsched.show.html import to_html
from hetsched.show.layer import Layer
from hetsched.show.palette import CRITICAL, LANE, Palette
from hetsched.show.svg import to_svg
from hetsched.sim.costs import Costs
from hetsched.sim.critical import critical_path
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Span, Stream, Timeline
from tests.plan.pipelines import lowered, unlowered
from tests.show.browser import Browser, missing
from tests.show.steps import MS, colocated_step, later_from, scaled_comparison

pytestmark = [pytest.mark.alone, pytest.mark.skipif(missing() is not None, reason=missing() or "")]
# The place of a span in the window, and the colors of a square of the lanes' canvas.
BOX = """
  const box = document.getElementById("lanes").getBoundingClientRect();
  const span = layers[LAYER].names.findIndex((name, n) => name === NAME && layers[LAYER].lane[n] === LANE);
  return [box.left + (x(layers[LAYER].start[span]) + x(layers[LAYER].end[span])) / 2,
          box.top + rowTop(LANE, LAYER) + bar / 2];
"""
COLORS = """
  const canvas = document.getElementById("lanes"), box = canvas.getBoundingClientRect();
  const [left, top] = [Math.floor(PX - box.left), Math.floor(PY - box.top)];
  const pixels = canvas.getContext("2d").getImageData(left, top, SIZE, SIZE).data, found = new Set();
  for (let i = 0; i < pixels.length; i += 4) {
    found.add("#" + [...pixels.slice(i, i + 3)].map((c) => c.toString(16).padStart(2, "0")).join(""));
  }
  return [...found];
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Timeline, Path]:
    timeline = colocated_step(64, 256, encoder="stage0")
    path = tmp_path_factory.mktemp("page") / "large.html"
    path.write_text(to_html([Layer("step", timeline)], title="64 x 256"), encoding="utf-8")
    return timeline, path


@pytest.fixture
def small(browser: Browser, tmp_path: Path) -> Timeline:
    """Opens a step beside the same one with a late action; returns the first."""
    timeline = colocated_step()
    late = later_from(timeline, "llm:1F1", 30 * MS)
    layers = [Layer("predicted", timeline), Layer("measured", late)]
    path = tmp_path / "small.html"
    path.write_text(to_html(layers, title="small", comparison=compare(timeline, late)), encoding="utf-8")
    browser.open(path)
    return timeline


@pytest.fixture
def printed(browser: Browser) -> Iterator[None]:
    """Pages are laid out for print."""
    browser.use_media("print")
    yield
    browser.use_media("")


def center_of(browser: Browser, name: str, *, lane: int, layer: int = 0) -> tuple[float, float]:
    script = BOX.replace("LAYER", str(layer)).replace("NAME", f'"{name}"').replace("LANE", str(lane))
    px, py = browser.run(script)
    return px, py


def colors_at(browser: Browser, px: float, py: float, *, size: int = 1) -> set[str]:
    """The colors of a square of the lanes' canvas."""
    return set(browser.run(COLORS.replace("PX", str(px)).replace("PY", str(py)).replace("SIZE", str(size))))


def fill_of(timeline: Timeline, span: Span) -> str:
    palette = Palette([timeline.program])
    return palette.looks[palette.number(span.action)].fill


def texts_drawn(browser: Browser) -> list[str]:
    """What is written on the canvases when they are drawn."""
    script = """
      const painter = CanvasRenderingContext2D.prototype, write = painter.fillText, found = [];
      painter.fillText = (text) => found.push(text);
      draw();
      painter.fillText = write;
      return found;
    """
    return list(browser.run(script))


def open_step(browser: Browser, folder: Path, timeline: Timeline) -> None:
    """Opens the page of one timeline."""
    path = folder / "step.html"
    path.write_text(to_html([Layer("step", timeline)], title="t"), encoding="utf-8")
    browser.open(path)


def view(browser: Browser) -> tuple[float, float]:
    start, end = browser.run("return [state.from, state.to];")
    return start, end


def test_64_lanes_of_256_microbatches_open_within_3_s(browser: Browser, large: tuple[Timeline, Path]) -> None:
    timeline, path = large
    seconds = []
    for _ in range(3):
        browser.open(path)
        assert browser.run("return state.isDrawn;")
        seconds.append(browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000;"))
    assert min(seconds) < 3, seconds
    assert browser.run("return layers[0].start.length;") == sum(s.stream is Stream.COMPUTE for s in timeline.spans)
    assert browser.run("return performance.getEntriesByType('resource').length;") == 0
    assert browser.complaints() == []


def test_a_large_step_zooms_in_on_a_single_action(browser: Browser, large: tuple[Timeline, Path]) -> None:
    timeline, path = large
    browser.open(path)
    span = next(s for s in timeline.stream(20, Stream.COMPUTE) if str(s.action) == "llm:20B100")
    browser.run(f"show({span.start_ns - 10 * MS}, {40 * MS});")
    browser.settle()
    px, py = center_of(browser, "llm:20B100", lane=20)
    assert colors_at(browser, px - 12, py) == {fill_of(timeline, span)}
    milliseconds = browser.run("const began = performance.now(); draw(); return performance.now() - began;")
    assert milliseconds < 1000


def test_blocks_have_the_color_of_their_kind(browser: Browser, small: Timeline) -> None:
    for span in small.stream(2, Stream.COMPUTE):
        px, py = center_of(browser, str(span.action), lane=2)
        if span.action.module == "llm":
            # Beside the name, which stands in the middle.
            assert colors_at(browser, px - 13, py - 4, size=3) == {fill_of(small, span)}, span
        else:
            assert len(colors_at(browser, px - 4, py - 14, size=6)) > 1, f"{span} has no hatch"


def test_the_wheel_zooms_around_the_mouse(browser: Browser, small: Timeline) -> None:
    px, py = map(round, center_of(browser, "llm:1F2", lane=1))
    before, time = view(browser), browser.run(f"return timeAt({px});")
    browser.wheel(px, py, -600)
    start, end = view(browser)
    assert end - start < (before[1] - before[0]) / 2
    assert browser.run(f"return timeAt({px});") == pytest.approx(time, abs=small.makespan_ns / 1e6)
    browser.wheel(px, py, 6000)
    assert view(browser) == before


def test_a_drag_pans_and_selects_the_lane_of_the_memory_curve(browser: Browser, small: Timeline) -> None:
    browser.run(f"show({small.makespan_ns // 4}, {small.makespan_ns // 2});")
    browser.settle()
    (start, end), (_, py) = view(browser), center_of(browser, "llm:2B1", lane=2)
    browser.drag(600, py, -100)
    moved = view(browser)
    assert moved[1] - moved[0] == pytest.approx(end - start)
    width = browser.run("return state.width;")
    assert moved[0] - start == pytest.approx((end - start) * 100 / width, rel=0.02)
    assert browser.run("return state.lane;") == 2


def test_the_hover_tells_times_and_needs(browser: Browser, small: Timeline) -> None:
    browser.move(*center_of(browser, "llm:1F1", lane=1))
    text = browser.run("return document.getElementById('tip').innerText;")
    (span,) = (s for s in small.spans if str(s.action) == "llm:1F1")
    (maker,) = (s for s in small.spans if str(s.action) == "llm:0F1")
    lines = text.splitlines()
    assert lines[:2] == ["llm:1F1", "lane 1, predicted"]
    assert lines[2].endswith(", lasts 10 ms") and lines[2].startswith(f"{span.start_ns / MS:g} ms to ")
    assert lines[3].startswith(f"needs llm:0F1 of lane 0, done {maker.end_ns / MS:g} ms, message ")
    browser.move(5, 5)
    assert browser.run("return document.getElementById('tip').hidden;")


def test_the_critical_path_can_be_hidden(browser: Browser, small: Timeline) -> None:
    span = next(s for s in critical_path(small) if s.action.module == "llm" and s.stream is Stream.COMPUTE)
    px, py = center_of(browser, str(span.action), lane=span.lane)
    under = py + browser.run("return bar / 2;") + 0.5
    assert colors_at(browser, px, under) == {CRITICAL}
    browser.run("document.getElementById('critical').click();")
    browser.settle()
    assert CRITICAL not in colors_at(browser, px, under)


def test_the_page_says_what_diverges_and_why_lanes_are_idle(browser: Browser, small: Timeline) -> None:
    text = browser.run("return document.body.innerText;")
    assert "First divergence: llm:1F1 on lane 1 ended 30 ms late" in text
    assert "Durations, predicted and measured" in text
    for cause in ("warmup", "cooldown", "dependency", "transfer", "imbalance"):
        assert cause in text
    browser.run("document.getElementById('divergence').click();")
    browser.settle()
    start, end = view(browser)
    (span,) = (s for s in small.spans if str(s.action) == "llm:1F1")
    assert start <= span.start_ns < end < small.makespan_ns
    assert browser.complaints() == []


def test_a_faulty_page_is_noticed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "faulty.html"
    path.write_text(to_html([Layer("step", colocated_step())], title="t").replace("layers.forEach(bubble", "no.thing("))
    browser.open(path)
    assert any("ReferenceError" in line or "SyntaxError" in line for line in browser.complaints())


def test_the_summary_says_how_predicted_times_were_scaled(browser: Browser, tmp_path: Path) -> None:
    layers, comparison = scaled_comparison()
    path = tmp_path / "scaled.html"
    path.write_text(to_html(layers, title="t", comparison=comparison), encoding="utf-8")
    browser.open(path)
    before, after = browser.run("return document.getElementById('summary').innerText;").split("; ")
    assert before.startswith("predicted: step 64.775 ms (times scaled by 0.25 to the same work), idle ")
    assert after.startswith("measured: step 64.775 ms, idle ")


@pytest.mark.usefixtures("printed")
def test_what_was_drawn_for_the_window_fits_a_narrow_sheet(browser: Browser, small: Timeline) -> None:
    script = """
      document.body.style.width = "700px";
      return ["axis", "lanes", "memory"].map((id) => {
        const box = document.getElementById(id).getBoundingClientRect();
        return [box.width, box.height];
      });
    """
    drawn = browser.run("return ['axis', 'lanes', 'memory'].map((id) => document.getElementById(id).height);")
    window = browser.run("return document.documentElement.clientWidth;")
    assert browser.run(script) == [[700, pytest.approx(height * 700 / window)] for height in drawn]


@pytest.mark.usefixtures("printed")
def test_an_svg_is_as_wide_as_the_sheet(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "step.svg"
    path.write_text(to_svg([Layer("step", colocated_step())], title="t"), encoding="utf-8")
    browser.open(path)
    width, window = browser.run("return [document.rootElement.getBoundingClientRect().width, innerWidth];")
    assert width == window


def test_rows_of_tables_side_by_side_are_of_one_height(browser: Browser, small: Timeline) -> None:
    heights = browser.run("return [...document.querySelectorAll('td')].map((c) => c.getBoundingClientRect().height);")
    assert max(heights) < min(heights) + 1


def test_the_wheel_scrolls_a_page_that_shows_the_whole_step(browser: Browser, large: tuple[Timeline, Path]) -> None:
    browser.open(large[1])
    before = view(browser)
    browser.wheel(700, 500, 300)
    assert browser.run("return window.scrollY;") > 0
    assert view(browser) == before
    browser.wheel(700, 500, -300)
    assert view(browser) != before
    scrolled = browser.run("return window.scrollY;")
    browser.wheel(700, 500, 100)
    assert browser.run("return window.scrollY;") == scrolled


@pytest.mark.parametrize("held", ["ctrlKey", "metaKey", "altKey"])
def test_keys_of_the_browser_do_not_move_the_view(browser: Browser, small: Timeline, held: str) -> None:
    press = "window.dispatchEvent(new KeyboardEvent('keydown', {key: '+', HELD}));"
    before = view(browser)
    browser.run(press.replace("HELD", f"{held}: true"))
    assert view(browser) == before
    browser.run(press.replace("HELD", ""))
    assert view(browser) != before


def test_what_takes_no_time_is_not_painted(browser: Browser, tmp_path: Path) -> None:
    open_step(browser, tmp_path, simulate(lowered(unlowered("1f1b", 4, 8)), Costs.constant(F=MS, B=0)))
    browser.run("document.getElementById('critical').click();")
    browser.settle()
    px, py = center_of(browser, "llm:0B6", lane=0)
    assert colors_at(browser, px - 1, py, size=3) == {LANE}


def test_a_step_that_takes_no_time_has_one_tick_and_is_idle_for_none_of_it(browser: Browser, tmp_path: Path) -> None:
    open_step(browser, tmp_path, simulate(lowered(unlowered("1f1b", 4, 8)), Costs.constant(F=0, B=0)))
    assert browser.run("return ticks(10);") == [[0, "0"]]
    assert browser.run("return document.getElementById('summary').innerText;") == "step 0 ms, idle 0.0% of lane time"


def test_the_legend_names_what_is_drawn_and_its_letters(browser: Browser, tmp_path: Path) -> None:
    open_step(browser, tmp_path, simulate(lowered(unlowered("zb-h1", 4, 8)), Costs.constant(F=MS, I=MS, W=0)))
    names = browser.run("return [...document.querySelectorAll('#legend span')].map((entry) => entry.innerText);")
    assert names == ["llm F", "llm I", "idle", "F forward, I input gradient"]


def test_the_dashed_memory_curve_is_named(browser: Browser, small: Timeline) -> None:
    assert "microbatches of state of lane 0, measured dashed, other lanes in gray" in texts_drawn(browser)


def test_times_have_the_same_precision_whether_large_or_small(browser: Browser, small: Timeline) -> None:
    texts = browser.run("return [248182800, 30482800, 217700000].map(format);")
    assert texts == ["248.1828 ms", "30.4828 ms", "217.7 ms"]


def test_a_fused_pair_is_named_by_its_parts_and_says_once_what_it_needs(browser: Browser, tmp_path: Path) -> None:
    timeline = simulate(lowered(unlowered("dualpipev", 2, 6)), Costs.constant(F=MS, I=MS, W=MS))
    open_step(browser, tmp_path, timeline)
    pairs = [span.action.parts for span in timeline.spans if span.action.parts]
    names = ["&".join(str(part).removeprefix("llm:") for part in pair) for pair in pairs]
    assert {part for name in names for part in name.split("&")} <= set(texts_drawn(browser))
    browser.move(*center_of(browser, "3F2&0B0", lane=0))
    name, *lines = browser.run("return document.getElementById('tip').innerText;").splitlines()
    assert name == "3F2&0B0"
    assert [line.split(",")[0] for line in lines if "needs" in line] == ["needs 2F2&1B0 of lane 1"]
