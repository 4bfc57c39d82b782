"""A row of a batch job's input: its fields, its item, or why it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tfc.errors import BadData


@dataclass(frozen=True)
class Columns:
    """The fields of a row that hold its text, and its second text for pairs.

    With `folder` the text names a file: a path, from that folder on where it is not absolute.
    """

    text: str
    pair: str | None = None
    folder: Path | None = None


class Content(Protocol):
    """The fields of a row, in the form of its file."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as Python values."""

    def as_text(self) -> str:
        """The row as the errors file shows it."""


@dataclass(frozen=True)
class TextContent:
    """A row of a text file: its fields, none where it cannot be used, and its own bytes."""

    fields: dict[str, Any]
    raw: bytes

    def as_dict(self) -> dict[str, Any]:
        """The fields."""
        return self.fields

    def as_text(self) -> str:
        """The bytes; those that are no UTF-8 as `\\xNN`."""
        return self.raw.decode(errors="backslashreplace")


@dataclass(frozen=True)
class Row:
    """One row of the input.

    Attributes:
        line: its number in its file, from 1: of a text file the line that it ends on.
        end: the place in the file after it, in bytes; roughly so where rows have no bytes.
        item: what the session predicts, or the `BadData` that says why it cannot.
        content: its fields.
    """

    line: int
    end: int
    item: object
    content: Content


def item_of(fields: Mapping[str, Any], columns: Columns) -> str | tuple[str, str]:
    """The text, or the pair of texts, under `columns`.

    Raises:
        BadData: a column is missing, or holds something else.
    """
    text = _text(fields, columns.text)
    if columns.folder is not None:
        return str(columns.folder / text)
    return text if columns.pair is None else (text, _text(fields, columns.pair))


def unknown_field(name: str) -> BadData:
    """What is wrong with a row that has a field which the rows before did not have."""
    return BadData(f"the field '{name}' is not among the output's columns")


def json_type(value: object) -> str:
    """What JSON calls the type of `value`."""
    names = {list: "an array", dict: "an object", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """One line of JSON in UTF-8, with its end; values of Arrow that JSON lacks become texts."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in a field passed through: only \\u can say it
        return json.dumps(value, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array or a number of numpy
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise BadData(f"no field '{column}'; the row has: {', '.join(fields) or 'no fields'}")
    value = fields[column]
    if not isinstance(value, str):
        raise BadData(f"the field '{column}' is {json_type(value)}, not a text")
    return value
