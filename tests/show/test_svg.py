"""The SVG shows every action at its place, says what it is without color, and stays small."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hetsched.cli.schedule_flags import MODULE
from hetsched.layout.placement import Edge, ModuleOnLanes, Topology
from hetsched.schedule.action import Kind, act
from hetsched.schedule.program import Program
from hetsched.show.compare import compare
from hetsched.show.fit import FONT_SIZE, text_width
from hetsched.show.layer import Layer
from hetsched.show.palette import LINES, Hatch, Look, Palette
from hetsched.show.svg import to_svg
from hetsched.sim.costs import Costs
from hetsched.sim.simulate import simulate
from hetsched.sim.timeline import Stream, Timeline
from tests.plan.pipelines import lowered, unlowered
from tests.show.idle import idle_seconds
from tests.show.steps import MS, colocated_step, scaled_comparison

SVG = "{http://www.w3.org/2000/svg}"
BOX = re.compile(r"M([\d.]+) (\d+)h([\d.]+)v(\d+)h-[\d.]+z")


def root_of(timeline: Timeline) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg([Layer("step", timeline)], title="a <step> & more"))


def boxes(root: ElementTree.Element) -> dict[str, list[tuple[float, int, float]]]:
    """Fill -> (left, top, width) of the blocks drawn with it."""
    found: dict[str, list[tuple[float, int, float]]] = defaultdict(list)
    for path in root.iter(f"{SVG}path"):
        for left, top, width, _ in BOX.findall(path.get("d") or ""):
            found[path.get("fill") or ""].append((float(left), int(top), float(width)))
    return found


def test_every_action_is_a_block_and_blocks_lie_where_their_times_are() -> None:
    timeline = colocated_step()
    found = boxes(root_of(timeline))
    spans = [s for s in timeline.spans if s.stream is Stream.COMPUTE]
    every = sorted((top, left, width) for blocks in found.values() for left, top, width in blocks)
    assert len(every) == len(spans)
    first, last = min(every, key=lambda b: b[1]), max(every, key=lambda b: b[1] + b[2])
    scale = (last[1] + last[2] + 1 - first[1]) / timeline.makespan_ns
    tops = sorted({top for top, _, _ in every})
    wanted = sorted((tops[s.lane], first[1] + s.start_ns * scale, s.duration_ns * scale) for s in spans)
    for (top, left, width), (wanted_top, wanted_left, wanted_width) in zip(every, wanted, strict=True):
        assert top == wanted_top
        assert left == pytest.approx(wanted_left, abs=0.2)
        assert width == pytest.approx(wanted_width - 1, abs=0.2)


def test_a_fused_pair_is_drawn_as_its_two_parts() -> None:
    timeline = simulate(lowered(unlowered("dualpipev", 2, 6)), Costs.constant(F=100, I=100, W=100))
    pairs = sum(bool(s.action.parts) for s in timeline.spans)
    computed = sum(s.stream is Stream.COMPUTE for s in timeline.spans)
    assert pairs and sum(map(len, boxes(root_of(timeline)).values())) == computed + pairs


def test_a_block_too_narrow_to_be_seen_is_widened_and_lies_over_its_neighbors() -> None:
    root = root_of(simulate(lowered(unlowered("1f1b", 4, 8)), Costs.constant(F=1000, B=1_000_000)))
    forward, backward = (look.fill for look in Palette([unlowered("1f1b", 4, 8)]).looks)
    assert [width for _, _, width in boxes(root)[forward]] == [0.5] * 32
    order = [path.get("fill") for path in root.iter(f"{SVG}path")]
    for at in range(0, 8, 2):
        assert [fill for fill in order if fill in (forward, backward)][at : at + 2] == [backward, forward]


def test_what_takes_no_time_is_no_block() -> None:
    root = root_of(simulate(lowered(unlowered("1f1b", 4, 8)), Costs.constant(F=0, B=1_000_000)))
    assert sum(map(len, boxes(root).values())) == 32


def test_the_axis_of_a_step_that_takes_no_time_has_one_tick() -> None:
    root = root_of(simulate(lowered(unlowered("1f1b", 4, 8)), Costs.constant(F=0, B=0)))
    (axis,) = (group for group in root.iter(f"{SVG}g") if group.get("text-anchor") == "middle")
    assert [text.text for text in axis] == ["0", "ms"]


def test_the_title_is_text_and_the_legend_names_every_look() -> None:
    texts = [text.text for text in root_of(colocated_step()).iter(f"{SVG}text")]
    assert "a <step> & more" in texts
    assert {"llm F", "llm B", "vision F", "vision B", "idle", "critical path"} <= set(texts)
    assert "F forward, B backward" in texts


def test_the_legend_has_transfers_only_where_they_take_time() -> None:
    transfers = {"transfer forward", "transfer backward"}
    assert transfers <= {text.text for text in root_of(colocated_step()).iter(f"{SVG}text")}
    free = simulate(colocated_step().program, Costs.constant(F=MS, B=MS))
    assert transfers.isdisjoint(text.text for text in root_of(free).iter(f"{SVG}text"))


def test_the_legend_leaves_out_what_takes_no_time_and_spells_out_the_rest() -> None:
    timeline = simulate(lowered(unlowered("zb-h1", 4, 8)), Costs.constant(F=0, I=MS, W=MS))
    texts = [text.text for text in root_of(timeline).iter(f"{SVG}text")]
    assert {"llm I", "llm W", "I input gradient, W weight gradient"} <= set(texts) and "llm F" not in texts


def test_the_subtitle_says_how_predicted_times_were_scaled() -> None:
    layers, comparison = scaled_comparison()
    text = "predicted step 64.775 ms (times scaled by 0.25 to the same work), idle"
    assert text in to_svg(layers, title="t", comparison=comparison)
    timeline = colocated_step()
    assert "scaled" not in to_svg([Layer("step", timeline)], title="t", comparison=compare(timeline, timeline))


def test_names_of_blocks_do_not_overlap() -> None:
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for text in root_of(colocated_step()).iter(f"{SVG}text"):
        if re.fullmatch(r"v?[FB]\d*", text.text or ""):
            half = text_width(text.text or "", size=float(text.get("font-size") or FONT_SIZE)) / 2
            x = float(text.get("x") or 0)
            rows[text.get("y") or ""].append((x - half, x + half))
    assert sum(map(len, rows.values())) > 20
    for row in rows.values():
        for (_, end), (start, _) in pairwise(sorted(row)):
            assert end <= start


def test_each_part_of_a_fused_pair_has_its_name() -> None:
    timeline = simulate(lowered(unlowered("dualpipev", 2, 6)), Costs.constant(F=100, I=100, W=100))
    at = {text.text: (text.get("x"), float(text.get("y") or 0)) for text in root_of(timeline).iter(f"{SVG}text")}
    pairs = [span.action.parts for span in timeline.spans if span.action.parts]
    for forward, backward in pairs:
        (x, above), (same_x, below) = (at[f"{part.stage}{part.kind}{part.first}"] for part in (forward, backward))
        assert x == same_x and above < below


def test_a_name_is_small_where_only_that_fits_and_what_has_none_is_counted() -> None:
    root = root_of(simulate(lowered(unlowered("1f1b", 16, 32)), Costs.constant(F=100, B=200)))
    texts = list(root.iter(f"{SVG}text"))
    names = [text for text in texts if re.fullmatch(r"[FB]\d+", text.text or "")]
    assert {text.get("font-size") for text in names} == {"8"}
    assert len(names) == 160
    assert "864 of 1024 boxes too narrow for names; see --format html" in [text.text for text in texts]


def test_nothing_is_said_of_names_where_every_box_has_one() -> None:
    assert "too narrow" not in to_svg([Layer("step", colocated_step())], title="t")


def test_a_long_title_ends_in_an_ellipsis_within_the_picture() -> None:
    title = "a plan with a long name " * 9
    texts = ElementTree.fromstring(to_svg([Layer("step", colocated_step())], title=title)).iter(f"{SVG}text")
    (shown,) = (text.text or "" for text in texts if text.get("font-size") == "18")
    assert shown.endswith("\N{HORIZONTAL ELLIPSIS}") and title.startswith(shown[:-1])
    assert 1100 < text_width(shown, size=18) < 1232


def luminance(color: str) -> float:
    """WCAG's relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def are_told_apart_in_gray(one: Look, other: Look) -> bool:
    return one.hatch is not other.hatch or contrast(one.fill, other.fill) >= 1.5


def all_looks() -> list[Look]:
    zero_bubble = unlowered("zb-h1", 2, 4)
    return Palette([colocated_step().program, unlowered("1f1b", 2, 4), zero_bubble]).looks


def test_looks_differ_without_color() -> None:
    looks = all_looks()
    assert {look.name for look in looks} >= {f"{MODULE} {kind}" for kind in (Kind.F, Kind.B, Kind.I, Kind.W)}
    assert [pair for pair in combinations(looks, 2) if not are_told_apart_in_gray(*pair)] == []


def test_nine_encoders_differ_without_color() -> None:
    names = [f"encoder{n}" for n in range(9)]
    modules = [ModuleOnLanes(name, (((0,),),), takes_items=True) for name in names]
    topology = Topology(1, (*modules, ModuleOnLanes("llm", (((0,),),))), tuple(Edge(name, "llm") for name in names))
    actions = [act(module.name, 0, kind, 0) for kind in (Kind.F, Kind.B) for module in topology.modules]
    looks = Palette([Program(topology, 1, (tuple(actions),))]).looks
    assert len(looks) == 20
    assert [pair for pair in combinations(looks, 2) if not are_told_apart_in_gray(*pair)] == []


def test_hatches_have_lines_of_their_own() -> None:
    assert len(set(LINES.values())) == len(Hatch) == len(LINES)


def test_two_looks_of_one_gray_would_be_found() -> None:
    assert not are_told_apart_in_gray(Look("a", "#cc4444", "#000000"), Look("b", "#2d8f2d", "#000000"))


def test_names_can_be_read_on_their_fill() -> None:
    assert [look.name for look in all_looks() if contrast(look.fill, look.ink) < 3.0] == []


def test_encoders_are_hatched_and_the_language_model_is_not() -> None:
    for look in Palette([colocated_step().program]).looks:
        assert (look.hatch is not Hatch.NONE) == look.name.startswith("vision")


@pytest.mark.alone
def test_64_lanes_of_256_microbatches_are_written_within_2_s(tmp_path: Path) -> None:
    timeline = colocated_step(64, 256, encoder="stage0")
    path = tmp_path / "step.svg"
    seconds, _ = idle_seconds(lambda: path.write_text(to_svg([Layer("step", timeline)], title="64 x 256")))
    assert seconds < 2
    assert path.stat().st_size < 4_000_000
