"""Tables are read into frozen dataclasses as declared, or refused with the path of the fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from hetsched.config import read_table, require
from hetsched.errors import PlanError


@dataclass(frozen=True)
class Square:
    side: int
    kind: Literal["square"] = "square"

    def __post_init__(self) -> None:
        require(self.side > 0, f"side={self.side}", field="side", fix="write a positive number")


@dataclass(frozen=True)
class Circle:
    radius: float
    kind: Literal["circle"] = "circle"


@dataclass(frozen=True)
class Drawing:
    name: str
    shapes: dict[str, Square | Circle]
    sizes: tuple[int, ...] = ()
    scale: float = 1.0
    is_filled: bool = False
    frame: Square | None = None
    color: Literal["red", "blue"] = "red"
    layers: tuple[Circle, ...] = ()
    note: str = field(default="", init=False)


GOOD: dict[str, Any] = {
    "name": "a",
    "shapes": {"s": {"kind": "square", "side": 2}, "c": {"kind": "circle", "radius": 1}},
    "sizes": [1, 2],
    "scale": 2,
    "frame": {"side": 3},
    "layers": [{"radius": 0.5}],
}


def test_a_table_becomes_what_its_types_declare() -> None:
    drawing = read_table(Drawing, GOOD)
    assert drawing == Drawing(
        "a", {"s": Square(2), "c": Circle(1.0)}, sizes=(1, 2), scale=2.0, frame=Square(3), layers=(Circle(0.5),)
    )
    assert type(drawing.scale) is float and type(drawing.layers[0].radius) is float


@pytest.mark.parametrize(
    ("change", "field_name", "problem", "fix"),
    [
        ({"nmae": 1}, "nmae", "unknown key 'nmae'", "write 'name'"),
        ({"zzz": 1}, "zzz", "unknown key 'zzz'", "use one of: name, shapes, sizes"),
        ({"note": "x"}, "note", "unknown key 'note'", "use one of: name"),
        ({"name": 1}, "name", "name = 1 is not a string", "write a string"),
        ({"scale": True}, "scale", "scale = true is not a number", "write a number"),
        ({"scale": "1"}, "scale", "scale = '1' is not a number", "write a number"),
        ({"is_filled": 0}, "is_filled", "is_filled = 0 is not true or false", "write true or false"),
        ({"sizes": [1, 2.5]}, "sizes[1]", "sizes[1] = 2.5 is not an integer", "write an integer"),
        ({"sizes": (1, 2)}, "sizes", "sizes = (1, 2) is not a list", "write a list"),
        ({"sizes": [False]}, "sizes[0]", "sizes[0] = false is not an integer", "write an integer"),
        ({"color": "green"}, "color", "color = 'green' is not known", "choose from 'red', 'blue'"),
        ({"frame": 3}, "frame", "frame is 3, not a table", "write a table here"),
        ({"frame": {"side": 0}}, "frame.side", "side=0", "write a positive number"),
        ({"frame": {}}, "frame.side", "missing key 'side'", "add side = an integer"),
        ({"shapes": []}, "shapes", "shapes = [] is not a table", "write a table"),
        ({"shapes": {"x": 1}}, "shapes.x", "shapes.x = 1 is not a table", "write a table"),
        ({"shapes": {"x": {}}}, "shapes.x.kind", "kind = None is not known", "choose from 'square', 'circle'"),
        ({"shapes": {"x": {"kind": ["square"]}}}, "shapes.x.kind", "kind = ['square'] is not known", "'circle'"),
        ({"shapes": {"x": {"kind": "circle", "side": 1}}}, "shapes.x.side", "unknown key 'side'", "radius, kind"),
        ({"layers": [{"radius": 1}, {"radius": None}]}, "layers[1].radius", "radius = None is not a number", "number"),
        ({"name": ["x" * 99]}, "name", f"name = ['{'x' * 55}... is not a string", "write a string"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(
    change: dict[str, Any], field_name: str, problem: str, fix: str
) -> None:
    with pytest.raises(PlanError) as raised:
        read_table(Drawing, GOOD | change)
    assert (raised.value.field, raised.value.source) == (field_name, None)
    assert problem in raised.value.problem and fix in raised.value.fix


@dataclass(frozen=True)
class Required:
    frame: Square
    layers: tuple[Circle, ...]
    sizes: tuple[int, ...]
    color: Literal["red", "blue"]
    scale: float


@dataclass(frozen=True)
class Page:
    drawing: Required


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("frame", "add [drawing.frame]"),
        ("layers", "add [[drawing.layers]]"),
        ("sizes", "add sizes = a list"),
        ("color", "add color = one of 'red', 'blue'"),
        ("scale", "add scale = a number"),
    ],
)
def test_a_missing_key_is_named_as_it_is_written_in_the_file(key: str, fix: str) -> None:
    table = {"frame": {"side": 1}, "layers": [], "sizes": [], "color": "red", "scale": 1}
    del table[key]
    with pytest.raises(PlanError) as raised:
        read_table(Page, {"drawing": table})
    assert (raised.value.field, raised.value.fix) == (f"drawing.{key}", fix)


def test_a_missing_table_is_refused() -> None:
    with pytest.raises(PlanError, match=r"missing key 'shapes'\n  field shapes\n  fix: add \[shapes.<name>\]$"):
        read_table(Drawing, {"name": "a"})
    with pytest.raises(PlanError, match="the plan is 3, not a table"):
        read_table(Drawing, 3)
