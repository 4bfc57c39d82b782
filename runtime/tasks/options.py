"""What a call may choose: the options of a task, given in Python or as text, read strictly.

A task's options are a frozen dataclass. Each field has a type among `bool`, `int`, `float`,
`str`, `tuple[str, ...]`, a `Literal` of texts, and one of these or None; and, under ``help`` in its
metadata, the line that `tfc run --help` prints. `__post_init__` refuses values out of range.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfc.errors import UsageError

_NOT_JSON = object()
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "null",
}


def option(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a task's options; without a default the caller must give it."""
    return dataclasses.field(default=default, metadata={"help": help})


def options_from_values(task: str, kind: type, values: Mapping[str, object]) -> Any:
    """The options `kind` of the task called `task`, with `values` for some of them.

    Raises:
        UsageError: an unknown name, a value of another type or out of range, or one missing.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise _unknown(task, name, list(fields))
        if not _fits(hints[name], value):
            raise UsageError(
                f"the option '{name}' is {_shown(value)}, not {_described(hints[name])}",
                fix=f"It is: {fields[name].metadata['help']}",
            )
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise UsageError(
                f"{task} needs the option '{name}': {field.metadata['help']}",
                fix=f"Give it as {name}=… in Python, or with --set {name}=…",
            )
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def values_from_settings(task: str, kind: type, settings: Sequence[str]) -> dict[str, object]:
    """``NAME=VALUE`` → values by name: JSON, plain text, or a list with commas, as the type asks.

    Raises:
        UsageError: there is no ``=``, a name is unknown, or stands twice.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise UsageError(f"'{setting}' is not NAME=VALUE", fix="For example: --set top_k=3")
        if name not in hints:
            raise _unknown(task, name, list(hints))
        if name in values:
            raise UsageError(f"the option '{name}' is set twice", fix="Set it once")
        values[name] = _value(hints[name], text)
    return values


def described_options(kind: type) -> list[tuple[str, str]]:
    """Each option with its help and its default, for people."""
    rows = []
    for field in dataclasses.fields(kind):
        default = ""
        if field.default is dataclasses.MISSING:
            default = "  [required]"
        elif field.default is not None:
            default = f"  [default: {_as_text(field.default)}]"
        rows.append((field.name, field.metadata["help"] + default))
    return rows


def _value(hint: Any, text: str) -> object:
    """The first reading of `text` that fits `hint`; if none does, the first one of all."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = _NOT_JSON
    split = [part.strip() for part in text.split(",") if part.strip()]
    readings = [reading for reading in (parsed, text, split) if reading is not _NOT_JSON]
    return next((reading for reading in readings if _fits(hint, reading)), readings[0])


def _fits(hint: Any, value: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(part, value) for part in typing.get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(part) for part in typing.get_args(hint))
    if origin is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    return "a list of texts" if origin is tuple else _KINDS[hint]


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__


def _as_text(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    return default if isinstance(default, str) else json.dumps(default)


def _unknown(task: str, name: str, known: list[str]) -> UsageError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return UsageError(
        f"{task} has no option '{name}'", fix=f"{hint}It has: {', '.join(known) or 'none'}"
    )
