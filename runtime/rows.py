"""One line of a batch job's input → a row: its fields and its text, or why it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfc.errors import BadData


@dataclass(frozen=True)
class Columns:
    """The fields of a row that hold its text, and its second text for pairs.

    With `folder` the text names a file: a path, from that folder on where it is not absolute.
    """

    text: str
    pair: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Row:
    """One line of the input: what it says, or why it cannot be used.

    `end` is the place in the file after it, in bytes.
    """

    line: int
    raw: bytes
    end: int
    fields: dict[str, Any] = field(default_factory=dict)
    item: object = None


def rows_of_lines(lines: Iterator[tuple[int, bytes, int]], columns: Columns) -> Iterator[Row]:
    """A row of each (line number, line, place after it); bad ones carry their `BadData`."""
    for line, raw, end in lines:
        try:
            fields = _fields(raw)
            item = _item(fields, columns)
        except BadData as problem:
            yield Row(line, raw, end, item=problem)
        else:
            yield Row(line, raw, end, fields, item)


def _fields(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line."""
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise BadData(f"not UTF-8 text (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise BadData(f"not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits; too deep
        raise BadData(f"not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadData(f"not a JSON object but {_json_type(value)}")
    return value


def _item(fields: dict[str, Any], columns: Columns) -> str | tuple[str, str]:
    text = _text(fields, columns.text)
    if columns.folder is not None:
        return str(columns.folder / text)
    return text if columns.pair is None else (text, _text(fields, columns.pair))


def _text(fields: dict[str, Any], column: str) -> str:
    if column not in fields:
        raise BadData(f"no field '{column}'; the row has: {', '.join(fields) or 'no fields'}")
    value = fields[column]
    if not isinstance(value, str):
        raise BadData(f"the field '{column}' is {_json_type(value)}, not a text")
    return value


def _json_type(value: object) -> str:
    names = {list: "an array", dict: "an object", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
