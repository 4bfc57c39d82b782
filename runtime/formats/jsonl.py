"""JSON lines: one JSON object in each line. Lines of white space only are no rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tfc.errors import BadData
from tfc.runtime.formats.streams import MOST_LINE_BYTES, Line
from tfc.runtime.rows import Columns, Row, TextContent, item_of, json_type

_NOTHING: dict[str, Any] = {}


def rows_of_lines(lines: Iterable[Line], columns: Columns) -> Iterator[Row]:
    """A row of each line; bad ones carry their `BadData`."""
    for line in lines:
        if not line.raw.strip():
            continue
        raw = line.raw.rstrip(b"\r\n")
        fields, item = _NOTHING, None
        try:
            fields = _fields(line, raw)
            item = item_of(fields, columns)
        except BadData as problem:
            yield Row(line.number, line.end, problem, TextContent(fields, raw))
        else:
            yield Row(line.number, line.end, item, TextContent(fields, raw))


def _fields(line: Line, raw: bytes) -> dict[str, Any]:
    if line.too_long:
        raise BadData(f"the line is longer than {MOST_LINE_BYTES >> 20} MiB")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadData(f"not UTF-8 text (byte {error.start + 1} of the line)") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadData(f"not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits; too deep
        raise BadData(f"not usable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadData(f"not a JSON object but {json_type(value)}")
    return value
