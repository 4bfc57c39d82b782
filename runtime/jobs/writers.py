"""Rows and their predictions → the bytes of one shard, in the output's format.

CSV and Parquet have columns, which are the same in every shard of a job. A Parquet input brings
them; for the other formats they are those of the first rows, and a later row that does not fit
them is a bad row.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tfc.errors import BadData
from tfc.runtime.formats import CSV, JSONL, TSV, Format
from tfc.runtime.formats.csv import CsvWriter
from tfc.runtime.formats.predictions import Field
from tfc.runtime.rows import Content, json_bytes, unknown_field
from tfc.runtime.tasks.base import Prediction

PREDICTION = "prediction"
# The output's columns as the journal keeps them: names of CSV, an Arrow schema of Parquet.
OutputColumns = list[str] | str | None
Rows = Sequence[tuple[Content, Prediction]]


@dataclass(frozen=True)
class Style:
    """How an output is written.

    Attributes:
        format: the format of its files.
        fields: what the predictions hold; JSON lines need none.
        half: whether embeddings are stored as float16 (Parquet only).
    """

    format: Format
    fields: tuple[Field, ...] = ()
    half: bool = False


class Writer(Protocol):
    """Writes one shard."""

    @property
    def columns(self) -> OutputColumns:
        """The output's columns, once they are known."""

    def problems(self, contents: Sequence[Content]) -> list[BadData | None]:
        """Of each row why it does not fit the columns; the first call settles these."""

    def write(self, rows: Rows) -> None:
        """Add rows that fit."""

    def close(self) -> None:
        """Write what is left."""


def writer_of(sink: BinaryIO, style: Style, columns: OutputColumns, *, header: bool) -> Writer:
    """A writer to an open file, with the columns of the shards before; `header` is for CSV."""
    if style.format.kind == JSONL:
        return _JsonlRows(sink)
    if style.format.kind in (CSV, TSV):
        return _CsvRows(sink, style, columns, header)
    return _ParquetRows(sink, style, columns)


@contextmanager
def compressed(raw: BinaryIO, codec: str | None) -> Iterator[BinaryIO]:
    """`raw`, or a stream that compresses into it; several of them after another are one file."""
    if codec is None:
        yield raw
        return
    import pyarrow as pa

    with pa.CompressedOutputStream(pa.PythonFile(_Open(raw), mode="w"), codec) as stream:
        yield stream


def join(parts: Sequence[Path], sink: BinaryIO, format: Format) -> None:
    """The shards of an output, as its one file; little of them is in memory at once."""
    if format.kind not in (JSONL, CSV, TSV):
        from tfc.runtime.formats.parquet import join_parquet

        join_parquet(parts, sink)
        return
    for part in parts:
        with part.open("rb") as stream:
            while block := stream.read(1 << 20):
                sink.write(block)


class _Open:
    """A file that stays open when pyarrow closes it."""

    closed = False

    def __init__(self, raw: BinaryIO) -> None:
        self.write, self.flush = raw.write, raw.flush

    def close(self) -> None:
        self.flush()


class _JsonlRows:
    columns: OutputColumns = None

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def problems(self, contents: Sequence[Content]) -> list[BadData | None]:
        return [None] * len(contents)

    def write(self, rows: Rows) -> None:
        lines = (json_bytes({**content.as_dict(), PREDICTION: p}) for content, p in rows)
        self._sink.write(b"".join(lines))

    def close(self) -> None:
        self._sink.flush()


class _CsvRows:
    def __init__(self, sink: BinaryIO, style: Style, columns: OutputColumns, header: bool) -> None:
        self.columns = columns
        self._sink, self._style, self._header = sink, style, header
        self._fields = [field.name for field in style.fields]

    def problems(self, contents: Sequence[Content]) -> list[BadData | None]:
        rows = [content.as_dict() for content in contents]
        if self.columns is None:
            names = dict.fromkeys(name for row in rows for name in row)
            self.columns = [name for name in names if not self._is_ours(name)]
        known = {*self.columns, *filter(self._is_ours, (name for row in rows for name in row))}
        unknown = [next((name for name in row if name not in known), None) for row in rows]
        return [None if name is None else unknown_field(name) for name in unknown]

    def write(self, rows: Rows) -> None:
        assert isinstance(self.columns, list)
        writer = CsvWriter(self.columns, self._fields, self._style.format.kind)
        if self._header:
            self._sink.write(writer.header(PREDICTION))
            self._header = False
        lines = (writer.row(content.as_dict(), prediction) for content, prediction in rows)
        self._sink.write(b"".join(lines))

    def close(self) -> None:
        self._sink.flush()

    def _is_ours(self, name: str) -> bool:
        return name == PREDICTION or name.startswith(f"{PREDICTION}.")


class _ParquetRows:
    def __init__(self, sink: BinaryIO, style: Style, columns: OutputColumns) -> None:
        import pyarrow as pa

        self._sink, self._style = sink, style
        self._schema: Any = None
        self._writer: Any = None
        if isinstance(columns, str):
            self._schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(columns)))

    @property
    def columns(self) -> OutputColumns:
        if self._schema is None:
            return None
        return base64.b64encode(self._schema.serialize().to_pybytes()).decode()

    def problems(self, contents: Sequence[Content]) -> list[BadData | None]:
        from tfc.runtime.formats import arrow

        if self._schema is None:
            self._schema = self._first_schema(contents)
        if not contents or isinstance(contents[0], arrow.ArrowContent):
            return [None] * len(contents)
        rows = [_without_prediction(content.as_dict()) for content in contents]
        if arrow.all_fit(rows, self._schema):
            return [None] * len(rows)
        return [arrow.row_problem(row, self._schema) for row in rows]

    def write(self, rows: Rows) -> None:
        from tfc.runtime.formats import arrow
        from tfc.runtime.formats.parquet import ParquetWriter

        if not rows:
            return
        contents = [content for content, _ in rows]
        if isinstance(contents[0], arrow.ArrowContent):
            batches = [content for content in contents if isinstance(content, arrow.ArrowContent)]
            table = arrow.table_of_contents(batches, self._schema)
        else:
            found = [_without_prediction(content.as_dict()) for content in contents]
            table = arrow.table_of_dicts(found, self._schema)
        style = self._style
        predictions = [prediction for _, prediction in rows]
        array = arrow.prediction_array(predictions, style.fields, style.half)
        table = table.append_column(PREDICTION, array)
        if self._writer is None:
            self._writer = ParquetWriter(self._sink, table.schema)
        self._writer.write(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _first_schema(self, contents: Sequence[Content]) -> Any:
        from tfc.runtime.formats import arrow

        first = contents[0] if contents else None
        if not isinstance(first, arrow.ArrowContent):
            return arrow.inferred_schema([_without_prediction(c.as_dict()) for c in contents])
        schema = first.batch.schema.remove_metadata()
        place = schema.get_field_index(PREDICTION)
        return schema if place < 0 else schema.remove(place)


def _without_prediction(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != PREDICTION}
