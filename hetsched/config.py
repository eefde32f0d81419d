"""Strict reading of plain tables (as TOML gives them) into frozen dataclasses.

Every key must name a field and every value must have the field's declared type; anything else is a
PlanError that names the field and the fix. Nothing is converted silently except int to float.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from hetsched.errors import PlanError

T = TypeVar("T")

_NAMES: dict[Any, str] = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def read_table(cls: type[T], table: object, *, path: str = "") -> T:
    """An instance of the dataclass ``cls`` from ``table``.

    Args:
        cls: a frozen dataclass; nested dataclasses, ``tuple[X, ...]``, ``dict[str, X]``, ``X | None``, ``Literal``
            and unions of dataclasses that a field ``kind`` tells apart are understood.
        table: what the TOML parser returned.
        path: dotted path of the table, for messages.

    Raises:
        PlanError: an unknown or missing key, or a value of another type.
    """
    if not isinstance(table, Mapping):
        raise PlanError(f"{path or 'the plan'} is {_shown(table)}, not a table", field=path, fix="write a table here")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            fix = f"write {close[0]!r}" if close else f"use one of: {', '.join(fields)}"
            raise PlanError(f"unknown key {key!r}", field=_join(path, str(key)), fix=fix)
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = read_value(hints[name], table[name], path=_join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise PlanError(f"missing key {name!r}", field=_join(path, name), fix=_addition(hints[name], name, path))
    try:
        return cls(**values)
    except PlanError as error:
        raise PlanError(error.problem, field=_join(path, error.field), fix=error.fix) from None


def read_value(hint: Any, value: object, *, path: str) -> Any:
    """``value`` checked against the type ``hint``; see read_table."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        options = [a for a in args if a is not type(None)]
        return read_value(options[0] if len(options) == 1 else _chosen(options, value, path), value, path=path)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool):
            raise PlanError(
                f"{path.rsplit('.', 1)[-1]} = {_shown(value)} is not known",
                field=path,
                fix=f"choose from {_list(args)}",
            )
        return value
    if origin is tuple:
        if not isinstance(value, list):
            is_tables = dataclasses.is_dataclass(args[0])
            raise _wrong_type(path, value, "a list", fix=f"write [[{path}]] above each table" if is_tables else None)
        return tuple(read_value(args[0], entry, path=f"{path}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, value, "a table")
        return {key: read_value(args[1], entry, path=_join(path, key)) for key, entry in value.items()}
    if dataclasses.is_dataclass(hint):
        return read_table(typing.cast(type, hint), value, path=path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise _wrong_type(path, value, _NAMES[hint])
    return value


def _addition(hint: Any, name: str, path: str) -> str:
    """The fix for a key that is missing: what to add to the file."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    full = _join(path, name)
    if dataclasses.is_dataclass(hint):
        return f"add [{full}]"
    if origin is dict:
        return f"add [{full}.<name>]"
    if origin is tuple:
        return f"add [[{full}]]" if dataclasses.is_dataclass(args[0]) else f"add {name} = a list"
    if origin is typing.Literal:
        return f"add {name} = one of {_list(args)}"
    return f"add {name} = {_NAMES.get(hint, 'a value')}"


def _chosen(options: list[Any], value: object, path: str) -> Any:
    """The dataclass among ``options`` whose ``kind`` the table names."""
    if not isinstance(value, Mapping):
        raise _wrong_type(path, value, "a table")
    by_kind = {option.kind: option for option in options}
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in by_kind:
        raise PlanError(
            f"kind = {_shown(kind)} is not known",
            field=_join(path, "kind"),
            fix=f"choose from {_list(tuple(by_kind))}",
        )
    return by_kind[kind]


def require(condition: bool, problem: str, *, field: str, fix: str) -> None:
    """Raise the PlanError described unless ``condition`` holds."""
    if not condition:
        raise PlanError(problem, field=field, fix=fix)


def _wrong_type(path: str, value: object, wanted: str, *, fix: str | None = None) -> PlanError:
    return PlanError(f"{path} = {_shown(value)} is not {wanted}", field=path, fix=fix or f"write {wanted}")


def _shown(value: object) -> str:
    # As TOML has it.
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _list(values: tuple[object, ...]) -> str:
    return ", ".join(repr(v) for v in values)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
