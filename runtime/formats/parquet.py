"""Parquet: read in batches of rows, written a row group at a time. Imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tfc.errors import BadData
from tfc.runtime.formats.arrow import ArrowContent
from tfc.runtime.rows import Columns, Row, item_of

# Rows that are decoded at once: small beside a window of texts, large beside the cost of a call.
_BATCH_ROWS = 1024
# Rows of a row group: large enough that readers skip well, 25 MB where a row is an embedding of
# 384 numbers.
GROUP_ROWS = 16384


def check_same_columns(paths: Sequence[Path]) -> None:
    """Refuse files that would not make one output with columns.

    Raises:
        BadData: a file is damaged, or its columns are not those of the first file.
    """
    first = schema_of_parquet(paths[0])
    for path in paths[1:]:
        other = schema_of_parquet(path)
        for name in dict.fromkeys([*first.names, *other.names]):
            places = first.get_field_index(name), other.get_field_index(name)
            if min(places) < 0:
                what = f"the column '{name}' is in one of this file and the first file only"
            elif first.field(places[0]).type != other.field(places[1]).type:
                types = other.field(places[1]).type, first.field(places[0]).type
                what = f"the column '{name}' is {types[0]}, and {types[1]} in the first file"
            else:
                continue
            fix = "Give files of the same columns, or write JSON lines"
            raise BadData(what, where=str(path), fix=fix)


def _batches(file: Any, groups: Sequence[int]) -> Iterator[Any]:
    """The batches of one row group after the other: a reader of several keeps what it has read."""
    for group in groups:
        yield from file.iter_batches(_BATCH_ROWS, row_groups=[group], use_threads=False)


def schema_of_parquet(path: Path) -> Any:
    """The file's columns and their Arrow types.

    Raises:
        BadData: the file is missing or damaged.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        return file.schema_arrow


def rows_of_parquet(path: Path, columns: Columns, line: int = 0) -> Iterator[Row]:
    """The rows of the file after row number `line`.

    Raises:
        BadData: the file cannot be read, or has no column of texts where one is wanted.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        size, total = path.stat().st_size, file.metadata.num_rows
        check_text_columns(file.schema_arrow, columns, str(path))
        skipped, groups = _groups_after(file, line)
        for batch in _batches(file, groups):
            first = max(0, line - skipped)
            for index, item in enumerate(items_of_batch(batch, columns, first), first):
                number = skipped + index + 1
                yield Row(number, size * number // total, item, ArrowContent(batch, index))
            skipped += batch.num_rows


def items_of_batch(batch: Any, columns: Columns, first: int = 0) -> Iterator[object]:
    """Of each row from `first` on its item, or the `BadData` that says why it has none.

    `batch` is a record batch with the columns of texts that `columns` names.
    """
    texts = {name: batch.column(name) for name in _wanted(columns)}
    for index in range(first, batch.num_rows):
        yield _item(texts, index, columns)


class ParquetWriter:
    """Writes tables of one schema to an open file, in row groups of `GROUP_ROWS` or a few more."""

    def __init__(self, sink: Any, schema: Any) -> None:
        self._writer = pq.ParquetWriter(sink, schema, compression="zstd")
        self._waiting: list[Any] = []

    def write(self, table: Any) -> None:
        """Add rows."""
        self._waiting.append(table)
        if sum(waiting.num_rows for waiting in self._waiting) >= GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        """Write what waits, and the index that ends the file."""
        if self._waiting:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))


def join_parquet(parts: Sequence[Path], sink: Any) -> None:
    """The row groups of several files of one schema as one file, one of them in memory at once."""
    writer: ParquetWriter | None = None
    for part in parts:
        with pq.ParquetFile(part) as file:
            writer = writer or ParquetWriter(sink, file.schema_arrow)
            for group in range(file.num_row_groups):
                writer.write(file.read_row_group(group, use_threads=False))
    if writer is not None:
        writer.close()


def check_text_columns(schema: Any, columns: Columns, where: str = "") -> None:
    """Refuse rows without the columns of texts that `columns` names.

    Raises:
        BadData: a column is missing, or holds something else.
    """
    for name in _wanted(columns):
        place = schema.get_field_index(name)
        if place < 0:
            what = f"there is no column '{name}'; the file has: {', '.join(schema.names)}"
        elif not _is_text(schema.field(place).type):
            what = f"the column '{name}' is {schema.field(place).type}, not texts"
        else:
            continue
        raise BadData(what, where=where, fix="Name the column of texts with --text-column")


def _wanted(columns: Columns) -> list[str]:
    return [name for name in (columns.text, columns.pair) if name is not None]


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _item(texts: dict[str, Any], index: int, columns: Columns) -> object:
    try:
        return item_of({name: column[index].as_py() for name, column in texts.items()}, columns)
    except UnicodeDecodeError:
        return BadData("not UTF-8 text")
    except BadData as problem:
        return problem


def _groups_after(file: Any, line: int) -> tuple[int, list[int]]:
    """The row groups that hold rows after `line`, and how many rows there are before them."""
    before, first = 0, 0
    while first < file.num_row_groups:
        rows = file.metadata.row_group(first).num_rows
        if before + rows > line:
            break
        before += rows
        first += 1
    return before, list(range(first, file.num_row_groups))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            what, fix = "there is no such file", "Give a file of rows that you may read"
        else:
            line = str(error).splitlines()[0].rstrip(".") if str(error) else "it is damaged"
            what, fix = f"it cannot be read as Parquet: {line}", "Check that the file is whole"
        raise BadData(what, where=str(path), fix=fix) from error
