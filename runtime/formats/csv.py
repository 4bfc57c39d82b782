"""CSV and TSV with a header, in UTF-8. The format has no types: every field is a text.

Read by Python's own reader: pyarrow's gives up on a file whose row is both too short and not
UTF-8, and gives no line numbers. Lines are read as bytes, so that one bad row spoils no other.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tfc.errors import BadData
from tfc.runtime.formats.streams import Line, LineReader
from tfc.runtime.rows import Columns, Row, TextContent, item_of

# A field of more characters is a bad row; Python's own limit of 131072 is less than a web page.
# What follows a quote that is never closed is read up to here.
MOST_FIELD = 16 << 20
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def rows_of_csv(
    lines: LineReader, columns: Columns, kind: str, name: str, after: tuple[int, int] = (0, 0)
) -> Iterator[Row]:
    """The rows after line and byte `after`; the header is read in any case.

    Raises:
        BadData: the header cannot be used.
    """
    with _large_fields():
        taken = _Taken(lines)
        reader = csv.reader(taken, delimiter=_DELIMITERS[kind], strict=True)
        header = _header(reader, columns, name)
        lines.skip_to(*after)
        while True:
            taken.lines.clear()
            cells, damage = _cells(reader)
            if not taken.lines:
                return
            raw = b"".join(line.raw for line in taken.lines).rstrip(b"\r\n")
            if not cells and damage is None:
                continue  # an empty line
            fields: dict[str, str] = {}
            item: object
            try:
                fields = _fields(header, cells, damage)
                item = item_of(fields, columns)
            except BadData as problem:
                item = problem
            last = taken.lines[-1]
            yield Row(last.number, last.end, item, TextContent(fields, raw))


class CsvWriter:
    """Writes rows under a header of the input's columns, then those of the prediction.

    Values that are no texts or numbers are written as JSON.

    Args:
        columns: the input's columns.
        predictions: the prediction's fields, each a column ``prediction.<field>``.
        kind: ``csv`` or ``tsv``.
    """

    def __init__(self, columns: Sequence[str], predictions: Sequence[str], kind: str) -> None:
        self._columns, self._predictions, self._kind = columns, predictions, kind

    def header(self, name: str) -> bytes:
        """The first line; `name` is what the prediction is called."""
        return self._line([*self._columns, *(f"{name}.{field}" for field in self._predictions)])

    def row(self, fields: Mapping[str, Any], prediction: Mapping[str, Any]) -> bytes:
        """One row; a field that is missing is empty."""
        given = [fields.get(column) for column in self._columns]
        found = [prediction.get(field) for field in self._predictions]
        return self._line([_cell(value) for value in [*given, *found]])

    def _line(self, cells: Sequence[str]) -> bytes:
        text = io.StringIO(newline="")
        delimiter = _DELIMITERS[self._kind]
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow(cells)
        return text.getvalue().encode(errors="backslashreplace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


class _Taken:
    """Gives the lines to the reader as texts, and keeps those of the row that it is at."""

    def __init__(self, source: Iterator[Line]) -> None:
        self._source = source
        self.lines: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._source)
        self.lines.append(line)
        # Bytes that are no UTF-8 become surrogates, which `_fields` finds.
        return line.raw.decode(errors="surrogateescape")


def _header(reader: Iterator[list[str]], columns: Columns, name: str) -> list[str]:
    cells, problem = _cells(reader)
    if problem is None and not cells:
        return []
    if problem is None and not _is_text(cells):
        problem = BadData("the header is not UTF-8 text")
    twice = [cell for place, cell in enumerate(cells) if cell in cells[:place]]
    if problem is None and twice:
        problem = BadData(f"the header has the column '{twice[0]}' twice")
    wanted = [column for column in (columns.text, columns.pair) if column is not None]
    missing = [column for column in wanted if column not in cells]
    if problem is None and missing:
        problem = BadData(f"there is no column '{missing[0]}'; the file has: {', '.join(cells)}")
    if problem is not None:
        raise BadData(
            problem.what,
            where=f"{name}, line 1",
            fix="Give a header that names every column, and the column of the text (--text-column)",
        )
    return cells


def _cells(reader: Iterator[list[str]]) -> tuple[list[str], BadData | None]:
    """The next row's cells; none at the end, or where there is an error."""
    try:
        return next(reader, []), None
    except csv.Error as error:
        return [], BadData(f"not valid CSV: {error}")


def _fields(header: list[str], cells: list[str], damage: BadData | None) -> dict[str, str]:
    if damage is not None:
        raise damage
    if len(cells) != len(header):
        raise BadData(f"the row has {len(cells)} fields, and the header {len(header)}")
    if not _is_text(cells):
        raise BadData("not UTF-8 text")
    return dict(zip(header, cells, strict=True))


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _large_fields() -> Iterator[None]:
    before = csv.field_size_limit(MOST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
